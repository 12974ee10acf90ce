"""The whole command on a tiny model with random weights: masks of stock nnU-Net, refusals, failures, kills, reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_swinfuse.architecture.atomic_write import move_into_place
from nnunetv2_swinfuse.inference import case_planning, case_runner, prediction
from nnunetv2_swinfuse.inference.output_folder import OutputFolder
from nnunetv2_swinfuse.inference.predict import main

from .synthetic_models import ct_voxels, mr_voxels, write_image, write_whole_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_whole_model(tmp_path_factory.mktemp("model") / "results", folds=("fold_0", "fold_1"))


@pytest.fixture
def images(tmp_path) -> Path:
    for case in range(3):
        write_image(tmp_path / "in" / f"case_{case}_0000.nii.gz", ct_voxels(case, (20, 24, 28 + case)))
    return tmp_path / "in"


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, arguments), "-device", "cpu", "--disable_progress_bar"])
    return exit_.value.code


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def statuses(folder: Path) -> dict[str, str]:
    return {case["case"]: case["status"] for case in report_of(folder)["cases"]}


@pytest.mark.slow
def test_masks_are_those_of_stock_nnunet_bit_for_bit(model, images, tmp_path):
    assert run("-i", images, "-o", tmp_path / "ours", "-m", model) in (0, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0, 1))
    (tmp_path / "stock").mkdir()
    # Lists: for a folder nnU-Net forks twelve processes, which can hang after threads have run.
    files = [[str(path)] for path in sorted(images.iterdir())]
    predictor.predict_from_files_sequential(files, [str(tmp_path / "stock" / f"case_{n}") for n in range(3)])
    torch.set_num_threads(threads)
    labels = set()
    for case in range(3):
        name = f"case_{case}.nii.gz"
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()
        labels |= set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ours" / name)))))
    assert labels == {0, 1}
    for name in ("dataset.json", "plans.json"):
        assert json.loads((tmp_path / "ours" / name).read_text()) == json.loads((tmp_path / "stock" / name).read_text())


@pytest.mark.slow
def test_the_report_says_what_was_done_with_what(model, images, tmp_path):
    run(
        "-i", images / "case_1_0000.nii.gz", "-o", tmp_path / "out", "-m", model, "--disable_tta", "-f", 0, "--overlays"
    )
    report = report_of(tmp_path / "out")
    assert (report["format"], report["format_version"], report["finished"]) == ("swinfuse-report", 1, True)
    assert report["model"]["folds"] == ["0"]
    assert set(report["model"]["sha256"]) == {"plans.json", "dataset.json", "fold_0/checkpoint_final.pth"}
    assert {"torch", "nnunetv2", "nnunetv2-swinfuse"} <= set(report["versions"])
    (case,) = report["cases"]
    assert case["status"] == "predicted"
    assert [len(digest) for digest in case["input_sha256"]] == [64]
    assert set(case["seconds"]) == {"preprocessing", "prediction", "export"}
    mask = sitk.ReadImage(str(tmp_path / "out" / "case_1.nii.gz"))
    millilitres = sitk.GetArrayFromImage(mask).sum() * 3.0 * 2.0 * 1.5 / 1000
    assert case["volumes_ml"] == {"organ": pytest.approx(millilitres, abs=1e-3)}
    assert (tmp_path / "out" / "overlays" / "case_1.png").stat().st_size > 1000


@pytest.mark.slow
def test_refused_and_failing_cases_do_not_stop_the_others(model, images, tmp_path, monkeypatch, capsys):
    write_image(images / "mr_0000.nii.gz", mr_voxels())
    (images / "zero_0000.nii.gz").write_bytes(b"")
    original = case_runner._preprocess

    def fails_for_one(result, predictor):
        if result.task.case == "case_1":
            raise MemoryError("no memory for case_1")
        return original(result, predictor)

    monkeypatch.setattr(case_runner, "_preprocess", fails_for_one)
    assert run("-i", images, "-o", tmp_path / "out", "-m", model, "--disable_tta", "-f", 0) == 4
    assert statuses(tmp_path / "out") == {
        "case_0": "predicted", "case_1": "failed", "case_2": "predicted", "mr": "refused", "zero": "refused",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"case_0.nii.gz", "case_2.nii.gz"}
    errors = capsys.readouterr().err
    assert "case_1: FAILED, no mask: preprocessing failed (MemoryError: no memory for case_1)" in errors
    assert "mr: REFUSED" in errors


@pytest.mark.slow
def test_a_mask_that_was_written_in_part_never_appears(model, images, tmp_path, monkeypatch, capsys):
    export = case_runner.export_prediction_from_logits

    def cut_short(*arguments):
        export(*arguments)
        draft = Path(f"{arguments[5]}.nii.gz")
        draft.write_bytes(draft.read_bytes()[:-40])

    monkeypatch.setattr(case_runner, "export_prediction_from_logits", cut_short)
    image = images / "case_0_0000.nii.gz"
    assert run("-i", image, "-o", tmp_path / "out", "-m", model, "--disable_tta", "-f", 0) == 4
    assert statuses(tmp_path / "out") == {"case_0": "failed"}
    assert "case_0: FAILED, no mask: the mask could not be written" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.slow
def test_existing_masks_are_kept_unless_asked_and_only_for_the_same_image_and_model(model, images, tmp_path):
    out = tmp_path / "out"
    run("-i", images, "-o", out, "-m", model, "--disable_tta", "-f", 0)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    (out / "case_2.nii.gz").unlink()
    run("-i", images, "-o", out, "-m", model, "--disable_tta", "-f", 0)
    assert statuses(out) == {"case_0": "kept", "case_1": "kept", "case_2": "predicted"}
    assert {n: (out / n).stat().st_mtime_ns for n in ("case_0.nii.gz", "case_1.nii.gz")} == {
        n: before[n] for n in ("case_0.nii.gz", "case_1.nii.gz")
    }
    write_image(images / "case_0_0000.nii.gz", ct_voxels(9))
    (out / "case_1.nii.gz").write_bytes(b"edited by hand")
    assert run("-i", images, "-o", out, "-m", model, "--disable_tta", "-f", 0) == 4
    assert statuses(out) == {"case_0": "refused", "case_1": "kept", "case_2": "kept"}
    assert (out / "case_1.nii.gz").read_bytes() == b"edited by hand"
    assert run("-i", images / "case_2_0000.nii.gz", "-o", out, "-m", model, "--disable_tta", "-f", 1) == 4
    run("-i", images, "-o", out, "-m", model, "--disable_tta", "-f", 0, "--overwrite")
    assert set(statuses(out).values()) == {"predicted"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("output", ["images", "link to the images", "model"])
def test_nothing_is_written_where_an_output_would_replace_an_input(model, tmp_path, capsys, output):
    image = write_image(tmp_path / "in" / "patient.nii.gz", ct_voxels())
    (tmp_path / "link").symlink_to("in")
    out = {"images": tmp_path / "in", "link to the images": tmp_path / "link", "model": model}[output]
    before = files_of(out)
    assert run("-i", tmp_path / "in", "-o", out, "-m", model, "--overwrite") == 2
    assert f"{out / 'dataset.json' if output == 'model' else out / 'patient.nii.gz'}: " in capsys.readouterr().err
    assert files_of(out) == before
    assert image.is_file()


@pytest.mark.parametrize("named", ["folder", "file"])
def test_nothing_is_written_among_the_images(model, images, capsys, named):
    before = files_of(images)
    assert run("-i", images if named == "folder" else images / "case_0_0000.nii.gz", "-o", images, "-m", model) == 2
    assert f"{images}: the folder of images that -i names" in capsys.readouterr().err
    assert files_of(images) == before


def test_an_output_folder_that_itk_cannot_write_ends_nothing_halfway(model, images, tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"out\xe9")
    assert run("-i", images, "-o", out, "-m", model) == 2
    assert "not UTF-8" in capsys.readouterr().err
    assert not out.exists()


def test_first_stage_masks_are_not_replaced(model, images, tmp_path, capsys):
    mask = write_image(tmp_path / "first" / "case_1.nii.gz", np.ones((20, 24, 29), np.uint8))
    first = tmp_path / "first"
    assert run("-i", images, "-o", first, "-m", model, "-prev_stage_predictions", first, "--overwrite") == 2
    assert f"{mask}: this output file would replace an input file" in capsys.readouterr().err
    assert list(first.iterdir()) == [mask]


def test_save_probabilities_replaces_no_mask_without_overwrite(model, images, tmp_path):
    corrected = write_image(tmp_path / "out" / "case_0.nii.gz", np.ones((20, 24, 28), np.uint8))
    before = corrected.read_bytes()
    image = images / "case_0_0000.nii.gz"
    assert run("-i", image, "-o", tmp_path / "out", "-m", model, "--disable_tta", "-f", 0, "--save_probabilities") == 3
    assert statuses(tmp_path / "out") == {"case_0": "kept"}
    assert corrected.read_bytes() == before


def test_pictures_of_kept_masks_are_drawn_where_they_are_missing_or_older(model, images, tmp_path):
    out = tmp_path / "out"
    for case in (0, 1):
        write_image(out / f"case_{case}.nii.gz", np.ones((20, 24, 28), np.uint8))
    picture = out / "overlays" / "case_0.png"
    for expected in ("new", "same", "new"):
        before = picture.stat().st_mtime_ns if picture.is_file() else None
        run("-i", images / "case_0_0000.nii.gz", images / "case_1_0000.nii.gz", "-o", out, "-m", model, "--overlays")
        assert (picture.stat().st_mtime_ns == before) == (expected == "same")
        os.utime(out / "case_0.nii.gz", (0, 2**31 if expected == "same" else 0))
    # The image of the other case has 29 columns.
    assert [path.name for path in (out / "overlays").iterdir()] == ["case_0.png"]
    warnings = {case["case"]: case["warnings"] for case in report_of(out)["cases"]}
    assert any("no overlay picture" in warning for warning in warnings["case_1"])


def test_a_kill_in_the_first_case_does_not_leave_the_report_of_an_earlier_run(model, images, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text('{"finished": true, "cases": []}')

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "run_cases", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["-i", str(images), "-o", str(tmp_path / "out"), "-m", str(model), "-device", "cpu"])
    assert report_of(tmp_path / "out")["finished"] is False
    assert set(statuses(tmp_path / "out").values()) == {"pending"}


@pytest.mark.slow
def test_a_kill_between_record_and_mask_is_no_finished_case(model, images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    image = images / "case_0_0000.nii.gz"
    run("-i", image, "-o", out, "-m", model, "--disable_tta", "-f", 0)
    write_image(image, ct_voxels(9))
    move = move_into_place

    def killed(source, target):
        if str(target).endswith("case_0.nii.gz"):
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("nnunetv2_swinfuse.inference.output_folder.move_into_place", killed)
        with pytest.raises(KeyboardInterrupt):
            main(
                [
                    "-i",
                    str(image),
                    "-o",
                    str(out),
                    "-m",
                    str(model),
                    "-f",
                    "0",
                    "-device",
                    "cpu",
                    "--overwrite",
                    "--disable_tta",
                ]
            )
    run("-i", image, "-o", out, "-m", model, "--disable_tta", "-f", 0)
    assert statuses(out) == {"case_0": "predicted"}
    assert not list(out.glob(".swinfuse/partial*"))


@pytest.mark.slow
def test_two_processes_on_one_folder(model, images, tmp_path, capsys):
    out = tmp_path / "out"
    with OutputFolder(out, ".nii.gz"):
        assert run("-i", images, "-o", out, "-m", model) == 2
        assert run("-i", images, "-o", out, "-m", model, "-num_parts", 2, "-part_id", 0) == 2
    assert capsys.readouterr().err.count(f"process {os.getpid()}") == 2
    for part in (0, 1):
        run("-i", images, "-o", out, "-m", model, "--disable_tta", "-f", 0, "-num_parts", 2, "-part_id", part)
    assert len(list(out.glob("*.nii.gz"))) == 3
    assert {path.name for path in out.glob("report*.json")} == {"report_part0of2.json", "report_part1of2.json"}


def test_too_little_memory_is_said_before_it_starts(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(case_planning, "available_memory", lambda: 1000)
    image = images / "case_0_0000.nii.gz"
    assert run("-i", image, "-o", tmp_path / "out", "-m", model, "--disable_tta", "-f", 0) == 4
    (case,) = report_of(tmp_path / "out")["cases"]
    assert case["findings"][0]["check"] == "memory"
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.slow
def test_too_little_memory_can_be_accepted(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(case_planning, "available_memory", lambda: 1000)
    image = images / "case_0_0000.nii.gz"
    assert run("-i", image, "-o", tmp_path / "out", "-m", model, "--disable_tta", "-f", 0, "--accept", "memory") == 3


LOOKUP = "import socket; socket.getaddrinfo('localhost', 80)"
OFFLINE = """
import sys

def hook(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        print("NETWORK", event, arguments, flush=True)

sys.addaudithook(hook)
from nnunetv2_swinfuse.inference.predict import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_prediction_opens_no_network_connection(model, images, tmp_path):
    arguments = ["-i", str(images / "case_0_0000.nii.gz"), "-o", str(tmp_path / "out"), "-m", str(model), "-f", "0"]
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE, *arguments, "-device", "cpu"], capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 3), result.stderr
    assert "NETWORK" not in result.stdout
    # The hook sees what it should see.
    seen = subprocess.run(
        [sys.executable, "-c", OFFLINE.split("from nnunetv2")[0] + LOOKUP],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "NETWORK socket.getaddrinfo" in seen.stdout
