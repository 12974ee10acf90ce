import html
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import load_encoder
from nnunetv2_swinfuse.errors import InputError
from pretraining.cli import main
from pretraining.loop import CHECKPOINT
from pretraining.monitoring.log import read_records
from pretraining.next_commands import make_resume_command
from pretraining.preprocessed.reader_locks import without_readers
from pretraining.run_lock import hold_run

from .command_line import command, contents, fails, run_folder, set_paths, volumes_folder
from .voxel_probe.synthetic_labelled import write_dataset

pytestmark = pytest.mark.slow


def test_the_organ_probe_joins_the_validations_and_bad_datasets_are_refused_first(root, capsys):
    write_dataset(root / "raw", cases=5)
    assert "999: 0 datasets" in fails(capsys, *command("--overwrite", "--probe", "999"))
    main(command("--overwrite", "--probe", "501", validate_every=1))
    records = [r for r in read_records(run_folder(root)) if r["kind"] == "validation"]
    assert [0 <= record["organ_dice_501_2"] <= 1 for record in records] == [True, True]
    # The floors are those of the run, not of a step.
    assert len({record["random_organ_dice_501_2"] for record in records}) == 1
    assert "organs of 501, 2 labelled cases" in (run_folder(root) / "report.html").read_text()


def test_a_run_publishes_an_encoder_that_needs_no_code_execution(finished):
    published = finished / "results" / "swinfuse" / "encoder.pth"
    assert torch.load(published, weights_only=True)["collection"]["name"] == "SynthRAD"
    encoder = load_encoder(published)
    assert encoder.sha256 == load_encoder(run_folder(finished) / "encoder.pth").sha256
    assert encoder.source == str(run_folder(finished) / "encoder.pth")
    assert encoder.spacing == pytest.approx((3.6, 4.0, 4.0))
    assert (run_folder(finished) / "configuration.json").is_file()


def test_a_finished_run_has_a_report_with_its_command(finished):
    report = html.unescape((run_folder(finished) / "report.html").read_text())
    assert "Finished: 2 of 2 steps" in report
    assert f"swinfuse_pretrain {shlex.join(command())}" in report
    assert "4 CT, 4 MR" in report


def test_a_diverged_run_has_a_report_that_says_so(root, capsys):
    arguments = command("--overwrite", learning_rate=1e30, gradient_clip=1e30, warmup_steps=0, steps=4)
    assert "lower --learning_rate" in fails(capsys, *arguments)
    assert "Stopped: step " in (run_folder(root) / "report.html").read_text()


def test_missing_tensorboard_is_reported_before_any_work(root, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    shutil.rmtree(root / "preprocessed" / "SynthRAD")
    assert "pip install tensorboard" in fails(capsys, *command("--overwrite", "--tensorboard"))
    assert not (root / "preprocessed" / "SynthRAD").exists()


def test_a_residual_encoder_is_trained_and_published(root, capsys):
    arguments = command("--train_only", "--recipe", "resenc", feature_size=8, depths=(1, 2))
    main(arguments)
    out = capsys.readouterr().out
    assert "nnUNetv2_plan_and_preprocess -d DATASET_ID -pl nnUNetPlannerResEncM\n" in out
    train = "nnUNetv2_train DATASET_ID 3d_fullres 0 -tr nnUNetTrainerSwinFUSE -p nnUNetResEncUNetMPlans"
    assert train in out
    folder = root / "results" / "SynthRAD" / "swinfuse__tiny_resenc"
    assert train in html.unescape((folder / "report.html").read_text())
    encoder = load_encoder(root / "results" / "swinfuse" / "encoder.pth")
    assert encoder.settings.backbone == "resenc"
    assert encoder.settings.depths == (1, 2)
    assert encoder.source == str(folder / "encoder.pth")


def test_sizes_of_the_other_backbone_are_refused_with_the_recipe_that_has_them(root, capsys):
    error = fails(capsys, "-d", "SynthRAD", "-p", "base", "--backbone", "resenc", "--train_only")
    assert "depths [2, 2, 2, 2] and num_heads [3, 6, 12, 24]" in error
    assert "--recipe resenc" in error


@pytest.mark.usefixtures("without_pictures")
def test_temporary_files_of_killed_processes_are_removed(root):
    left = run_folder(root) / "checkpoint_latest.pthabc.tmp"
    left.write_bytes(b"half a checkpoint")
    main(command("--c"))
    assert not left.exists()


@pytest.mark.usefixtures("without_pictures")
def test_a_finished_run_is_not_overwritten_by_accident(root, capsys):
    before = (run_folder(root) / CHECKPOINT).read_bytes()
    assert "already holds a run" in fails(capsys, *command())
    assert (run_folder(root) / CHECKPOINT).read_bytes() == before
    main(command("--overwrite", seed=5))
    assert (run_folder(root) / CHECKPOINT).read_bytes() != before


def test_two_commands_do_not_share_the_folder_of_a_run(root, capsys, monkeypatch):
    monkeypatch.setattr("pretraining.run_lock.END_SECONDS", 0)
    before = contents(root)
    with hold_run(run_folder(root)):
        for more in (["--c"], ["--overwrite", "--seed", "5"], ["--train_only", "--overwrite"]):
            assert "swinfuse__tiny: another swinfuse_pretrain" in fails(capsys, *command(*more))
    assert contents(root) == before


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_one_process_of_a_run_holds_its_folder_and_its_volumes(root, capsys, monkeypatch, rank):
    monkeypatch.setattr("pretraining.run_lock.END_SECONDS", 0)
    if rank is not None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
    held = []

    def train(run):
        for lock in (hold_run(run.folder), without_readers(run.preprocessed)):
            try:
                with lock:
                    held.append(False)
            except InputError:
                held.append(True)
        return False

    monkeypatch.setattr("pretraining.run.run_pretraining", train)
    main(command("--train_only", "--c"))
    assert held == [rank != 1] * 2


def test_overwriting_deletes_the_checkpoint_before_anything_else_and_a_restart_does_not_resume_it(
    root, capsys, monkeypatch
):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pretraining.preprocessing.preprocess._measure_fingerprints", stop)
        assert "run the same command again" in fails(capsys, *command("--overwrite"), status=130)
    assert not (run_folder(root) / CHECKPOINT).exists()
    assert (run_folder(root) / "encoder.pth").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    main(command("--overwrite"))
    assert "Starting at step 0 of 2" in capsys.readouterr().out


@pytest.mark.usefixtures("without_pictures")
def test_a_restarted_command_that_overwrites_resumes_and_keeps_the_volumes(root, capsys, monkeypatch):
    volumes = {path: path.stat().st_mtime_ns for path in volumes_folder(root).rglob("*.b2nd")}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    main(command("--overwrite"))
    assert "Resuming at step 2 of 2" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in volumes_folder(root).rglob("*.b2nd")} == volumes


def test_input_that_is_refused_costs_no_checkpoint(root, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "PyTorch sees 1" in fails(capsys, *command("--overwrite", "-num_gpus", "2", device="cuda", batch_size=2))
    monkeypatch.undo()
    set_paths(monkeypatch, root)
    first = sorted((root / "raw" / "SynthRAD").rglob("ct.nii.gz"))[0]
    first.write_bytes(b"no image")
    assert str(first) in fails(capsys, *command("--overwrite"))
    assert (run_folder(root) / CHECKPOINT).exists()


def test_resuming_with_other_settings_is_refused(root, capsys):
    assert "learning_rate: 0.001 in the run, 0.1 now" in fails(capsys, *command("--c", "--learning_rate", "0.1"))


def test_a_corrupted_checkpoint_is_named(root, capsys):
    checkpoint = run_folder(root) / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    assert f"{checkpoint}: corrupted" in fails(capsys, *command("--c"))


def test_missing_path_variables_are_all_named(monkeypatch, capsys):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    error = fails(capsys, "-d", "SynthRAD")
    assert "not set: nnUNet_raw, nnUNet_preprocessed, nnUNet_results" in error
    assert "export nnUNet_raw=" in error


def test_a_missing_gpu_is_refused(root, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PyTorch sees no GPU" in fails(capsys, *command("--overwrite", device="cuda"))


def test_impossible_settings_are_refused_before_any_work(root, capsys):
    assert "batch_size is 0" in fails(capsys, *command("--overwrite", batch_size=0))
    assert run_folder(root).is_dir()


def test_an_interrupted_run_says_how_to_resume_it_and_can_be(root, capsys, monkeypatch):
    from pretraining.monitoring.log import RunLog

    record = RunLog.record

    def interrupted(self, step, kind, values):
        record(self, step, kind, values)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "record", interrupted)
        error = fails(capsys, *command("--overwrite", steps=3), status=130)
    assert "SIGINT at step 1; saved" in error
    report = (run_folder(root) / "report.html").read_text()
    assert "Not finished: 1 of 3 steps" in report
    assert "SIGINT at step 1" in report
    assert "Resume with: swinfuse_pretrain" in report
    typed = shlex.split(error.split("Resume with: swinfuse_pretrain ")[1])
    assert typed[-1] == "--c"
    main(typed)
    assert "Resuming at step 1 of 3" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["loop.DataLoader", "run.export_encoder"])
def test_an_interruption_outside_of_the_steps_says_how_to_resume_where_there_is_a_checkpoint(
    root, capsys, monkeypatch, place
):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"pretraining.{place}", interrupt)
    error = fails(capsys, *command("--c"), status=130)
    assert f"the last checkpoint is {run_folder(root) / CHECKPOINT}. Resume with: swinfuse_pretrain" in error
    assert "the same command again" not in error
    if place == "loop.DataLoader":
        assert "run the same command again" in fails(capsys, *command("--train_only", "--overwrite"), status=130)


def test_a_list_needs_only_the_raw_folder(root, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    monkeypatch.delenv("nnUNet_results")
    main(["--list"])
    assert "SynthRAD  SynthRAD  4         4      4   4" in capsys.readouterr().out
    main(["--list", "-d", "SynthRAD"])
    out = capsys.readouterr().out
    assert "4 patients, 4 paired, 4 CT and 4 MR volumes" in out
    assert "3.6 x 4 x 4" in out


def test_train_only_runs_without_nnunetv2(root):
    shutil.rmtree(root / "results")
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['nnunetv2', 'SimpleITK']))\n"
        "from pretraining.cli import main\n"
        f"main({command('--train_only', steps=1)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (root / "results" / "swinfuse" / "encoder.pth").is_file()


@pytest.mark.usefixtures("without_pictures")
def test_padded_volumes_are_counted_in_the_log(root):
    main(command("--overwrite", "--spacing", "20", "20", "20", steps=1))
    log = (run_folder(root) / "log.txt").read_text()
    assert "8 of 8 volumes are smaller than a crop of 16 x 16 x 16 voxels" in log


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "-d is missing"),
        (["-d", "A", "-num_parts", "2"], "give --preprocess_only"),
        (["-d", "A", "--preprocess_only", "-num_parts", "2", "-part_id", "2"], "parts from 0 to num_parts - 1"),
        (["-d", "A", "--preprocess_only", "-num_parts", "2", "--overwrite"], "remove the preprocessed folder"),
        (["-d", "A", "--c", "--overwrite"], "give one of them"),
        (["-d", "A", "--train_only", "--unpaired"], "belong to preprocessing"),
        (["-d", "A", "--train_only", "--leave_out", "a.txt"], "belong to preprocessing"),
        (["--list", "--modality", "PET"], "expected NAME=CT"),
    ],
)
def test_contradicting_options_are_refused(root, capsys, arguments, words):
    assert words in fails(capsys, *arguments)


@pytest.mark.usefixtures("without_pictures")
def test_a_run_starts_from_an_encoder_and_resumes_with_the_same_command(root, capsys):
    first = root / "results" / "swinfuse" / "encoder.pth"
    kept = shutil.copy(first, root / "kept.pth")
    arguments = command("--overwrite", init_from=str(kept), steps=1)
    main(arguments)
    assert "tensors matched, 0 adapted" in capsys.readouterr().out
    record = torch.load(run_folder(root) / CHECKPOINT, weights_only=True)["configuration"]
    assert record["init_from"] == str(kept)
    main(shlex.split(make_resume_command(arguments))[1:])


def test_a_wrong_initial_encoder_is_refused_before_any_work(root, capsys):
    torch.save({"weight": torch.zeros(1)}, root / "other.pth")
    shutil.rmtree(root / "preprocessed" / "SynthRAD")
    assert "contains no encoder" in fails(capsys, *command("--overwrite", init_from=str(root / "other.pth")))
    assert not (root / "preprocessed" / "SynthRAD").exists()
