"""What an export holds, what it leaves out, and that stock nnU-Net installs it."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from nnunetv2.model_sharing.model_import import install_model_from_zip_file

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.export import export_model, main
from nnunetv2_swinfuse.inference.manifest import MANIFEST
from nnunetv2_swinfuse.inference.verify import verify_folder, verify_zip

from .synthetic_models import write_whole_model


@pytest.fixture
def model(tmp_path):
    return write_whole_model(tmp_path / "results", folds=("fold_0", "fold_1"))


def test_an_export_says_what_the_model_is_and_nothing_of_patients_or_paths(model, tmp_path):
    words = {"intended_use": "Organs in portal venous CT.", "limits": "Children."}
    export_model(model, tmp_path / "m.zip", words=words, licences={"weights": "CC BY 4.0"})
    files = parts(tmp_path / "m.zip")
    assert sorted(files) == sorted(
        [
            "plans.json", "dataset.json", "dataset_fingerprint.json", "swinfuse_training_images.json", MANIFEST,
            "MODEL_CARD.md", "INSTALL.md",
            *(f"fold_{n}/{name}" for n in (0, 1) for name in ("checkpoint_final.pth", "validation/summary.json")),
        ]
    )  # fmt: skip
    for name, content in files.items():
        assert b"Doe" not in content, name
        assert b"alice" not in content, name
    manifest = json.loads(files[MANIFEST])
    assert manifest["licences"] == {
        "code": "Apache-2.0 (nnunetv2-swinfuse, nnunetv2)", "weights": "CC BY 4.0", "data": "CC0",
    }  # fmt: skip
    assert manifest["training"]["folds"] == ["fold_0", "fold_1"]
    assert {"torch", "nnunetv2", "nnunetv2-swinfuse", "python"} <= set(manifest["versions"])
    card = files["MODEL_CARD.md"].decode()
    for text in (
        "Not a medical device", "Organs in portal venous CT.", "Children.", "| organ | 0.875 | 0.925 | 0.900 |", "LPS",
        "pretrained on Made", "2 images; licence: CC0", "3.15 (3-3.3)",
    ):  # fmt: skip
        assert text in card, text
    assert "nnUNetv2_install_pretrained_model_from_zip" in files["INSTALL.md"].decode()


def parts(path):
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 2)[2]: archive.read(name) for name in archive.namelist()}


def test_scores_of_training_images_or_other_weights_are_not_exported(model, tmp_path):
    shutil.copytree(model / "fold_0", model / "fold_all")
    shutil.copy(model / "fold_0" / "checkpoint_final.pth", model / "fold_0" / "checkpoint_best.pth")
    export_model(model, tmp_path / "all.zip", folds=["all"])
    export_model(model, tmp_path / "best.zip", folds=["0"], checkpoint="checkpoint_best.pth")
    for name, reason in (
        ("all.zip", "trained on all images"),
        ("best.zip", "these are the weights of checkpoint_best"),
    ):
        files = parts(tmp_path / name)
        card = files["MODEL_CARD.md"].decode()
        assert "0.875" not in card
        assert reason in card
        assert not any("summary" in file for file in files)


def test_scores_of_earlier_weights_are_not_exported(model, tmp_path):
    # Trained again and killed before the validation.
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    later = (model / "fold_0" / "validation" / "summary.json").stat().st_mtime + 1
    os.utime(checkpoint, (later, later))
    (model / "fold_1" / "validation" / "summary.json").unlink()
    export_model(model, tmp_path / "m.zip")
    files = parts(tmp_path / "m.zip")
    card = files["MODEL_CARD.md"].decode()
    assert "fold_0 (validated before this checkpoint_final.pth was written: run nnUNetv2_train with --val)" in card
    assert "fold_1 (no validation summary)" in card
    assert "0.875" not in card
    assert not any("summary" in file for file in files)


def test_a_second_stage_is_exported_with_what_it_needs(model, tmp_path):
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    (model / "plans.json").write_text(json.dumps(plans))
    export_model(model, tmp_path / "m.zip")
    files = parts(tmp_path / "m.zip")
    assert json.loads(files[MANIFEST])["training"]["previous_stage"] == "3d_lowres"
    assert "-prev_stage_predictions" in files["INSTALL.md"].decode()
    assert "The second stage of a cascade" in files["MODEL_CARD.md"].decode()


def test_the_same_model_gives_the_same_bytes_and_an_existing_zip_is_kept(model, tmp_path):
    first = export_model(model, tmp_path / "a.zip")
    assert export_model(model, tmp_path / "b.zip") == first
    with pytest.raises(InputError, match="--overwrite"):
        export_model(model, tmp_path / "a.zip", folds=["0"])
    assert export_model(model, tmp_path / "a.zip", folds=["0"], overwrite=True) != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip", "results"]


def test_stock_nnunet_installs_it_and_the_installed_model_verifies(model, tmp_path, monkeypatch):
    export_model(model, tmp_path / "m.zip")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
    install_model_from_zip_file(str(tmp_path / "m.zip"))
    installed = tmp_path / "elsewhere" / model.parent.name / model.name
    verified = verify_folder(installed)
    assert verified.model == f"{model.parent.name}/{model.name}"
    content = torch.load(installed / "fold_0" / "checkpoint_final.pth", weights_only=True)
    trained = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert "optimizer_state" not in content
    assert content["network_weights"].keys() == trained["network_weights"].keys()
    assert all(torch.equal(content["network_weights"][k], v) for k, v in trained["network_weights"].items())
    # A change after installation is seen.
    plans = installed / "plans.json"
    plans.write_text(plans.read_text().replace('"order": 1', '"order": 3'))
    with pytest.raises(InputError, match=r"plans\.json has the SHA-256"):
        verify_folder(installed)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: [path.unlink() for path in m.glob("fold_*/checkpoint_final.pth")], "any fold"),
        (lambda m: (m / "plans.json").write_text("{"), "plans.json: damaged"),
        (lambda m: (m / "fold_1" / "checkpoint_final.pth").write_bytes(b"no zip"), "final.pth: .* is corrupted"),
        (lambda m: torch.save({"network_weights": {}}, m / "fold_0" / "checkpoint_final.pth"), "not of this model"),
        (lambda m: (m / "dataset_fingerprint.json").unlink(), "dataset_fingerprint.json: no such file"),
    ],
    ids=["no checkpoint", "plans", "damaged", "not nnU-Net's", "no fingerprint"],
)  # fmt: skip
def test_what_cannot_be_exported_is_named_and_leaves_nothing(model, tmp_path, spoil, message):
    spoil(model)
    with pytest.raises(InputError, match=message):
        export_model(model, tmp_path / "m.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_weights_that_are_no_numbers_are_not_exported(model, tmp_path):
    path = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    next(iter(content["network_weights"].values())).view(-1)[0] = float("nan")
    torch.save(content, path)
    with pytest.raises(InputError, match="hold NaN or infinity"):
        export_model(model, tmp_path / "m.zip")


def test_a_full_disk_keeps_the_zip_before(model, tmp_path, monkeypatch):
    first = export_model(model, tmp_path / "m.zip")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        export_model(model, tmp_path / "m.zip", folds=["0"], overwrite=True)
    assert verify_zip(tmp_path / "m.zip").sha256 == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.zip", "results"]


def test_the_command_prints_the_hash_or_the_reason(model, tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        return exit_.value.code

    assert run("-m", model, "-o", tmp_path / "m.zip") == 0
    assert verify_zip(tmp_path / "m.zip").sha256 in capsys.readouterr().out
    assert run("-m", model, "-o", tmp_path / "n.zip", "-f", 3) == 2
    assert "fold_3" in capsys.readouterr().err
