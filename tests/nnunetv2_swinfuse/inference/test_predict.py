"""The command line, and what is refused before anything is predicted; predictions are in test_prediction.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nnunetv2_swinfuse.inference.manifest import MANIFEST
from nnunetv2_swinfuse.inference.predict import main, parse

from .synthetic_models import ct_voxels, write_image, write_whole_model


@pytest.fixture
def images(tmp_path) -> Path:
    return write_image(tmp_path / "in" / "case_0_0000.nii.gz", ct_voxels()).parent


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, arguments), "-device", "cpu", "--disable_progress_bar"])
    return exit_.value.code


def test_defaults_are_those_of_nnunet():
    options = parse(["-i", "a", "-o", "b", "-m", "c"])
    assert (options.step_size, options.disable_tta, options.chk, options.f) == (
        0.5,
        False,
        "checkpoint_final.pth",
        None,
    )


@pytest.mark.parametrize(
    "wrong",
    [("-step_size", "0"), ("-step_size", "1.5"), ("-part_id", "1"), ("-npp", "-1"), ("-npp", "x"), ("-device", "tpu"),
     ("--accept", "readable")],
)  # fmt: skip
def test_wrong_options_end_before_anything_is_read(wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["-i", "a", "-o", "b", "-m", "c", *wrong])
    assert exit_.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def in_plans(old: str, new: str):
    def change(model: Path) -> None:
        path = model / "plans.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: (m / "fold_0" / "checkpoint_final.pth").write_bytes(b"x"), "damaged or no PyTorch archive"),
        (in_plans("SwinFUSEUNet", "Evil"), "Evil"),
        (in_plans('"feature_size": 12', '"feature_size": 24'), "do not make a network"),
        (lambda m: shutil.rmtree(m / "fold_0"), "in any fold"),
        (lambda m: (m / MANIFEST).write_text("{}"), "swinfuse_manifest.json: damaged"),
    ],
    ids=["checkpoint", "network", "sizes", "no fold", "manifest"],
)
def test_a_model_that_cannot_be_used_is_named(images, tmp_path, capsys, spoil, message):
    folder = write_whole_model(tmp_path / "results")
    spoil(folder)
    assert run("-i", images, "-o", tmp_path / "out", "-m", folder) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_folder_that_cannot_be_written(ct_model, images, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("-i", images, "-o", tmp_path / "file" / "out", "-m", ct_model) == 2
    assert "cannot be written" in capsys.readouterr().err
