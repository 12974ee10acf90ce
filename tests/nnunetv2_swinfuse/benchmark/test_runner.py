import gzip
import json
import os
import subprocess
import threading
import time

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.benchmark import runner as module
from nnunetv2_swinfuse.benchmark.cell_run import change_plans
from nnunetv2_swinfuse.benchmark.cells import RESULT, Workspace, measured_seconds, read_results
from nnunetv2_swinfuse.benchmark.cli import find_cell, listing, main
from nnunetv2_swinfuse.benchmark.commands import CommandError, Processes
from nnunetv2_swinfuse.benchmark.files import content_sha256, write_json
from nnunetv2_swinfuse.benchmark.preparation import Preparation, encoder_of, file_digests, find_dataset, seen_cases
from nnunetv2_swinfuse.benchmark.runner import Runner, estimate
from nnunetv2_swinfuse.benchmark.slurm import write_slurm
from nnunetv2_swinfuse.benchmark.table import read_kept, write_table
from nnunetv2_swinfuse.errors import BenchmarkError

from .tables import DATASET, make_experiment, result_of, rows_of


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A raw dataset of 12 tiny cases."""
    folder = tmp_path / "raw" / DATASET
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for case in range(12):
        image = sitk.GetImageFromArray(np.full((2, 2, 2), case, np.float32))
        sitk.WriteImage(image, str(folder / "imagesTr" / f"case_{case:03d}_0000.nii.gz"))
        sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(folder / "labelsTr" / f"case_{case:03d}.nii.gz"))
    labels = {"background": 0, "shell": 1, "core": 2}
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 12, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return folder


@pytest.fixture
def cells_run(monkeypatch):
    """The cells' trainings are replaced by their results; what was run, where, and which fail."""
    run = {"names": [], "fails": (), "places": [], "together": 0, "most": 0}
    lock = threading.Lock()

    def run_cell(experiment, workspace, cell, dataset, splits, processes, place):
        with lock:
            run["names"].append(cell.name)
            run["places"].append(place)
            run["together"] += 1
            run["most"] = max(run["most"], run["together"])
        time.sleep(0.05)
        with lock:
            run["together"] -= 1
        if cell.name in run["fails"]:
            raise CommandError("nnUNetv2_train ended with status 1")
        cases = list(splits[cell.fold].test)
        values = {name: np.full(len(cases), 0.5) for name in ("Dice", "HD95", "SurfaceDice", "VolumeError")}
        return result_of(cell, seconds=100.0), rows_of(cell, values, cases)

    monkeypatch.setattr(module, "run_cell", run_cell)
    return run


def make_runner(tmp_path, workers=1, **changes):
    root = tmp_path / "work"
    runner = Runner(make_experiment(test_cases=4, **changes), Workspace(root, root / "results"), workers)
    module.store_splits(runner.workspace.results, runner.splits)
    return runner


def test_a_failed_cell_is_reported_and_the_others_go_on(raw, cells_run, tmp_path, capsys):
    runner = make_runner(tmp_path)
    cells_run["fails"] = (runner.cells[1].name,)
    outcome = runner.run(runner.cells)
    assert [cell.name for cell in outcome.failed] == [runner.cells[1].name]
    assert len(outcome.done) == 5
    assert f"FAILED {runner.cells[1].name}: nnUNetv2_train ended" in capsys.readouterr().out
    cells_run.update(names=[], fails=())
    assert len(Runner(runner.experiment, runner.workspace).run(runner.cells).done) == 1
    assert cells_run["names"] == [runner.cells[1].name]


def test_a_seed_of_all_arms_comes_before_the_next(raw, tmp_path):
    assert [(cell.seed, cell.arm) for cell in make_runner(tmp_path).cells] == [
        (seed, arm) for seed in (0, 1, 2) for arm in ("nnunet", "resenc_m")
    ]


def test_a_budget_ends_between_cells_by_what_a_kind_took_before(raw, cells_run, tmp_path):
    runner = make_runner(tmp_path)
    # The first of either kind is not known; then each takes 100 s of 60.
    outcome = runner.run(runner.cells, minutes=1)
    assert (len(outcome.done), len(outcome.left)) == (2, 4)
    assert len(runner.run(runner.cells, minutes=2).done) == 4


def test_workers_share_the_cores_and_run_together(raw, cells_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: [0, 1, 2, 3])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runner = make_runner(tmp_path, workers=2)
    assert len(runner.run(runner.cells).done) == 6
    assert cells_run["most"] == 2
    assert {(place.threads, place.cores) for place in cells_run["places"]} == {(2, (0, 1)), (2, (2, 3))}


def test_workers_get_a_gpu_each(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    places = make_runner(tmp_path, workers=4, device="cuda").places()
    assert [place.gpu for place in places] == ["3", "5", "3", "5"]


def test_what_a_killed_runner_finished_but_did_not_keep_is_kept(raw, cells_run, tmp_path):
    runner = make_runner(tmp_path)
    outcome = runner.run(runner.cells)
    first, second = outcome.done[:2]
    result, table = result_of(first), rows_of(first, {"Dice": np.ones(4)}, list(runner.splits_of(first)[0].test))
    other = Runner(runner.experiment, Workspace(tmp_path / "other", tmp_path / "other" / "results"))
    module.store_splits(other.workspace.results, other.splits)
    folder = other.workspace.cell(first)
    write_table(table, folder / "cases.csv")
    write_json(folder / RESULT, result)
    cells_run["names"] = []
    other.run([first, second])
    assert cells_run["names"] == [second.name]
    assert set(read_kept(other.workspace.results)) == {first.name, second.name}


def test_the_list_tells_what_is_left_and_what_it_costs(raw, cells_run, tmp_path):
    runner = make_runner(tmp_path)
    runner.run(runner.cells[:1])
    text = listing(runner, ["swinfuse_benchmark", "made.json"])
    assert text.splitlines()[0].split() == ["done", runner.cells[0].name, "2", "min"]
    assert text.count("waiting") == 5
    assert "Measured kinds: 3 min to go" in text
    assert f"Not measured yet (their first cell will tell): resenc_m on {DATASET}." in text
    results = read_results(runner.workspace, runner.cells)
    assert measured_seconds(runner.cells, results) == {("nnunet", DATASET): 100.0}
    assert estimate(runner.cells, results) == (200.0, [("resenc_m", DATASET)])


def test_slurm_scripts_run_every_cell_once(raw, tmp_path):
    runner = make_runner(tmp_path)
    log = tmp_path / "calls.txt"
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {
        "srun": f'echo "$@" >> {log}',
        "sbatch": f'echo "sbatch $*" >> {log}; echo 77',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    submit = write_slurm(tmp_path, ["swinfuse_benchmark", "a b.json"], runner.cells, "cuda")
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    script = tmp_path / "cells.sbatch"
    assert "#SBATCH --array=0-5\n" in script.read_text()
    assert "#SBATCH --gres=gpu:1\n" in script.read_text()
    for task in range(6):
        subprocess.run(["bash", script], env={**environment, "SLURM_ARRAY_TASK_ID": str(task)}, check=True)
    calls = log.read_text().splitlines()
    assert calls == [f"swinfuse_benchmark a b.json --cell {cell.name}" for cell in runner.cells]
    log.unlink()
    subprocess.run(["bash", submit], env=environment, check=True)
    prepare, train, report = log.read_text().splitlines()
    assert "--prepare_only" in prepare
    assert f"--dependency=afterok:77 {script}" in train
    assert "--dependency=afterany:77" in report
    assert "--report_only" in report


def test_a_changed_experiment_does_not_mix_with_what_is_kept(raw, capsys, monkeypatch):
    monkeypatch.setattr(Runner, "prepare", lambda self: None)
    flags = ["-d", "901", "--arms", "nnunet", "resenc_m", "--labels", "3", "--test_cases", "4", "-device", "cpu"]

    def run(*options):
        with pytest.raises(SystemExit) as ended:
            main([*flags, "--prepare_only", *options])
        return ended.value.code, capsys.readouterr().err

    assert run("--epochs", "2")[0] == 0
    # More seeds are another sitting of the same experiment; another length is not.
    assert run("--epochs", "2", "--seeds", "0", "1", "2", "3")[0] == 0
    status, message = run("--epochs", "3")
    assert status == 2
    assert "differs in length" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name an experiment's file, or -d DATASETS and --arms ARMS"),
        (["-d", "777", "--arms", "nnunet"], f"0 folders are dataset 777, expected one; it has {DATASET}"),
        (["-d", "901", "--arms", "nnunet", "--labels", "9", "--test_cases", "4"], "9 labelled cases asked for, but 8"),
        (["-d", "901", "--arms", "nnunet", "resenc_m", "--test_cases", "4", "--cell", "x"], "--cell x: no such cell"),
        (["-d", "901", "--arms", "nnunet", "--test_cases", "4", "-num_workers", "0"], "-num_workers is 0"),
        (["none.json"], "none.json: cannot be read"),
        (["none.json", "--seeds", "1"], "change seeds there, not on the command line"),
    ],
)
def test_bad_command_lines(raw, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_cell_is_found_by_its_name(raw, tmp_path):
    runner = make_runner(tmp_path)
    assert find_cell(runner.cells, runner.cells[3].name) == runner.cells[3]


PLANS = {
    "configurations": {
        "3d_fullres": {
            "patch_size": [40, 56, 40],
            "batch_size": 9,
            "architecture": {
                "arch_kwargs": {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "features_per_stage": [32, 64, 128]}
            },
        }
    }
}


def test_plans_are_shrunk():
    changes = {"patch_size": [6, 8, 12], "batch_size": 2, "features_per_stage": [4, 8, 16]}
    block = change_plans(json.loads(json.dumps(PLANS)), "3d_fullres", changes, "plans")["configurations"]["3d_fullres"]
    assert (block["patch_size"], block["batch_size"]) == ([6, 8, 12], 2)
    assert block["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8, 16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [5, 8, 8]}, r"\[5, 8, 8\]; expected multiples of \[2, 4, 4\]"),
        ({"features_per_stage": [4, 8]}, "lists 2 stages, plans has 3"),
    ],
)
def test_plans_that_do_not_fit_the_network(changes, message):
    with pytest.raises(BenchmarkError, match=message):
        change_plans(json.loads(json.dumps(PLANS)), "3d_fullres", changes, "plans")


def test_files_are_known_by_what_they_hold(raw, tmp_path):
    dataset = find_dataset(901)
    images = [paths[0] for paths in dataset.images.values()]
    cache = tmp_path / "digests.json"
    first = file_digests(images, cache)
    assert len(set(first.values())) == 12
    # Compressed again, in another second and under another name, it is the same image.
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(gzip.compress(gzip.decompress(images[3].read_bytes()), compresslevel=1, mtime=1))
    assert content_sha256(copy) == first[str(images[3])]
    # A changed file is read again.
    images[3].write_bytes(images[4].read_bytes())
    os.utime(images[3], (1, 1))
    assert file_digests(images, cache)[str(images[3])] == first[str(images[4])]


def test_images_that_pretraining_learns_from_are_found_in_other_collections(raw, tmp_path):
    images = raw / "imagesTr"
    for name, side, source in (("a", "ct", 0), ("b", "ct", 1), ("a", "mr", 5), ("b", "mr", 6)):
        path = raw.parent / "Pairs" / side / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The same image, compressed otherwise.
        content = gzip.decompress((images / f"case_{source:03d}_0000.nii.gz").read_bytes())
        path.write_bytes(gzip.compress(content, compresslevel=1, mtime=1))
    pretraining = {"collections": ["Pairs"], "steps": 1}
    experiment = make_experiment(arms=["swinfuse", "mr"], pretraining=pretraining)
    workspace = Workspace(tmp_path / "work", tmp_path / "work" / "results")
    preparation = Preparation(experiment, workspace, Processes(), 1)
    dataset = find_dataset(901)
    digests = {
        case: list(file_digests(paths, tmp_path / "cache.json").values()) for case, paths in dataset.images.items()
    }
    expected = {"swinfuse": ["case_000", "case_001", "case_005", "case_006"], "mr": ["case_005", "case_006"]}
    for recipe, cases in expected.items():
        write_json(workspace.pretraining(recipe) / "volumes.json", preparation.learnt_digests(recipe))
        assert seen_cases(experiment.arm(recipe), workspace, digests) == cases


def test_an_unfinished_pretraining_is_named(tmp_path):
    experiment = make_experiment(arms=["swinfuse", "nnunet"], pretraining={"collections": ["Pairs"], "steps": 1})
    workspace = Workspace(tmp_path, tmp_path / "results")
    assert encoder_of(experiment.arm("nnunet"), workspace) is None
    with pytest.raises(BenchmarkError, match="the pretraining of recipe swinfuse is not done"):
        encoder_of(experiment.arm("swinfuse"), workspace)
