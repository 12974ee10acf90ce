"""The command: exit codes, JSON, what is printed."""

import json
import os
import shutil

import numpy as np
import pytest

from nnunetv2_swinfuse.inference.check import main

from .synthetic_models import ct_voxels, mr_voxels, write_image


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


@pytest.mark.parametrize(
    ("voxels", "options", "code"),
    [
        (ct_voxels(), {}, 0),
        (ct_voxels(), {"spacing": (6.0, 2.0, 1.5)}, 3),
        (mr_voxels(), {}, 4),
    ],
    ids=["passed", "warning", "refused"],
)
def test_the_exit_code_is_that_of_the_worst_case(tmp_path, ct_model, capsys, voxels, options, code):
    write_image(tmp_path / "in" / "good_0000.nii.gz", ct_voxels(1))
    write_image(tmp_path / "in" / "case_0000.nii.gz", voxels, **options)
    assert run("-i", tmp_path / "in", "-m", ct_model, "--json", tmp_path / "result.json") == code
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["verdict"] == {0: "passed", 3: "warning", 4: "refused"}[code]
    assert [case["verdict"] for case in result["cases"]] == [result["verdict"], "passed"]
    printed = capsys.readouterr().out
    assert "good: passed" in printed
    assert printed.splitlines()[-1].startswith("2 case(s)")


def test_json_on_standard_output_is_nothing_but_json(tmp_path, ct_model, capsys):
    image = write_image(tmp_path / "a.nii.gz", np.zeros((20, 24, 28), np.int16))
    assert run("-i", image, "-m", ct_model, "--json", "-") == 4
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    (finding,) = case["findings"]
    assert (finding["check"], finding["severity"], finding["file"]) == ("content", "refused", str(image))


def test_what_was_accepted_is_recorded_and_the_rest_cannot_be(tmp_path, ct_model, capsys):
    image = write_image(tmp_path / "a.nii.gz", ct_voxels(), orientation="RPS")
    assert run("-i", image, "-m", ct_model, "--accept", "orientation", "--json", "-") == 3
    result = json.loads(capsys.readouterr().out)
    assert result["accepted"] == ["orientation"]
    assert result["cases"][0]["findings"][0]["accepted"] is True
    assert run("-i", image, "-m", ct_model, "--accept", "readable") == 2


def test_a_name_that_is_not_utf8_refuses_one_case_and_ends_nothing(tmp_path, ct_model, capsys):
    image = write_image(tmp_path / "in" / "good.nii.gz", ct_voxels())
    shutil.copy(image, image.with_name(os.fsdecode(b"M\xfcller.nii.gz")))
    assert run("-i", tmp_path / "in", "-m", ct_model) == 4
    printed = capsys.readouterr().out
    assert "good: passed" in printed
    assert r"M\udcfcller: refused" in printed
    assert "rename" in printed.lower()


@pytest.mark.parametrize("broken", ["plans.json", "dataset.json", "dataset_fingerprint.json"])
@pytest.mark.parametrize("how", [None, "no JSON", "[]", "{}"])
def test_a_model_that_cannot_be_read_is_no_passed_check(tmp_path, ct_model, capsys, broken, how):
    image = write_image(tmp_path / "a.nii.gz", ct_voxels())
    (ct_model / broken).unlink()
    if how is not None:
        (ct_model / broken).write_text(how)
    assert run("-i", image, "-m", ct_model) == 2
    message = capsys.readouterr().err
    assert broken in message or str(ct_model) in message


def test_a_model_that_may_not_be_read_is_named(tmp_path, ct_model, capsys, unreadable):
    image = write_image(tmp_path / "a.nii.gz", ct_voxels())
    unreadable("dataset.json")
    assert run("-i", image, "-m", ct_model) == 2
    assert f"{ct_model / 'dataset.json'}: cannot be read" in capsys.readouterr().err


def test_the_model_is_found_as_nnunet_finds_it(tmp_path, ct_model, capsys, monkeypatch):
    image = write_image(tmp_path / "a.nii.gz", ct_voxels())
    assert run("-i", image, "-d", 900) == 2
    assert "nnUNet_results" in capsys.readouterr().err
    folder = tmp_path / "results" / "Dataset900_Made" / "nnUNetTrainerSwinFUSE__nnUNetPlans__3d_fullres"
    folder.parent.mkdir(parents=True)
    ct_model.rename(folder)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert run("-i", image, "-d", 900) == 0
    assert run("-i", image, "-d", "Dataset900_Made", "-c", "3d_fullres") == 0
    assert run("-i", image, "-d", 901) == 2
    assert run("-i", image, "-d", 900, "-m", folder) == 2


@pytest.mark.parametrize(
    "name",
    ["{results}/Dataset900_Made", "../results/Dataset900_Made", "Dataset9*", "Dataset900_[M]ade", "9\u00b2", "", "."],
)
def test_a_dataset_is_a_name_and_no_path_or_pattern(tmp_path, ct_model, capsys, monkeypatch, name):
    image = write_image(tmp_path / "a.nii.gz", ct_voxels())
    results = tmp_path / "results"
    folder = results / "Dataset900_Made" / "nnUNetTrainerSwinFUSE__nnUNetPlans__3d_fullres"
    folder.parent.mkdir(parents=True)
    ct_model.rename(folder)
    monkeypatch.setenv("nnUNet_results", str(results))
    name = name.format(results=results)
    assert run("-i", image, "-d", name) == 2
    message = capsys.readouterr().err
    assert f"-d {name}: 0 such datasets in {results}, expected one" in message
    assert "name the model's folder with -m" in message


def test_a_zip_beside_a_dataset_is_no_second_dataset(tmp_path, ct_model, monkeypatch):
    image = write_image(tmp_path / "a.nii.gz", ct_voxels())
    folder = tmp_path / "results" / "Dataset900_Made" / "nnUNetTrainerSwinFUSE__nnUNetPlans__3d_fullres"
    folder.parent.mkdir(parents=True)
    ct_model.rename(folder)
    (tmp_path / "results" / "Dataset900_Made.zip").write_bytes(b"")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert run("-i", image, "-d", 900) == 0


def test_results_that_cannot_be_listed_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nowhere"))
    assert run("-i", tmp_path, "-d", 900) == 2
    assert f"0 such datasets in {tmp_path / 'nowhere'}" in capsys.readouterr().err
    monkeypatch.setenv("nnUNet_results", str(tmp_path))

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(tmp_path), "iterdir", denied)
    assert run("-i", tmp_path, "-d", 900) == 2
    assert f"{tmp_path}: cannot be read (Permission denied)" in capsys.readouterr().err
