"""One model, one start: -pretrained_weights, folds that start at once, models of a newer version, another nnU-Net."""

import json
import shutil

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint, run_training

from nnunetv2_swinfuse.compatibility import VersionError
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from nnunetv2_swinfuse.training.fold_start import RECORD
from nnunetv2_swinfuse.training.planned_network import PlansError
from tests.nnunetv2_swinfuse.training.workshop import PLAIN, TRAINER, make_trainer, publish_encoder

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SCRATCH = "nnUNetTrainerSwinFUSEScratch_1epoch"


@pytest.fixture
def weights(copied, tmp_path):
    """A checkpoint of ours to begin with, and an empty results folder with another encoder published."""
    checkpoint = tmp_path / "weights.pth"
    (copied.model() / "fold_0" / "checkpoint_final.pth").rename(checkpoint)
    copied.model().rename(tmp_path / "old")
    publish_encoder(copied.encoder, seed=1)
    return checkpoint


def started(fold=0, weights=None, name=TRAINER):
    """As nnUNetv2_train, up to the first step."""
    trainer = make_trainer(name, fold=fold)
    maybe_load_checkpoint(trainer, False, False, None if weights is None else str(weights))
    trainer.on_train_start()
    return trainer


@pytest.mark.parametrize("name", [TRAINER, SCRATCH])
def test_pretrained_weights_are_recorded_in_place_of_the_published_encoder(copied, weights, name):
    trainer = started(weights=weights, name=name)
    plans = copied.configurations(trainer=name)["3d_fullres"]["swinfuse"]
    assert trainer.provenance.to_dict() == plans
    assert len(plans["pretrained_weights"]) == 64
    assert not {"encoder", "encoder_sha256", "encoder_source", "collection"} & set(plans)
    loaded = torch.load(weights, map_location="cpu", weights_only=False)["network_weights"]
    state = trainer.network.state_dict()
    assert all(torch.equal(state[key], loaded[key]) for key in state if ".seg_layers." not in key)
    # Its checkpoints resume, and a second fold needs the same weights.
    trainer.save_checkpoint(str(copied.model(name) / "fold_0" / "checkpoint_latest.pth"))
    again = make_trainer(name)
    maybe_load_checkpoint(again, True, False)
    again.on_train_start()
    assert again.provenance.to_dict() == plans
    with pytest.raises(EncoderChoiceError, match="fold_0 started with -pretrained_weights, fold 1 without"):
        started(fold=1, name=name)
    assert started(fold=1, weights=weights, name=name).provenance.to_dict() == plans


@pytest.mark.parametrize("name", [TRAINER, SCRATCH])
def test_the_only_fold_may_start_again_without_pretrained_weights(copied, weights, name):
    trainer = started(weights=weights, name=name)
    trainer.save_checkpoint(str(copied.model(name) / "fold_0" / "checkpoint_final.pth"))
    provenance = started(name=name).provenance
    assert provenance.pretrained_weights is None
    assert (provenance.encoder_sha256 is not None) == (name == TRAINER)
    assert copied.configurations(trainer=name)["3d_fullres"]["swinfuse"] == provenance.to_dict()
    assert started(fold=1, name=name).provenance == provenance


def test_pretrained_weights_for_one_fold_only_are_refused(copied, weights):
    started()
    with pytest.raises(EncoderChoiceError, match="pretrained_weights is None in that fold"):
        started(fold=1, weights=weights)


def test_folds_that_start_at_once_from_two_encoders_are_refused(published):
    first, second = make_trainer(fold=0), None
    first.initialize()
    # Between the start of two folds a pretraining ends.
    publish_encoder(published.encoder, seed=1)
    second = make_trainer(fold=1)
    second.initialize()
    first.on_train_start()
    with pytest.raises(EncoderChoiceError, match=f"{published.model() / 'fold_0' / RECORD}: fold_0 .* encoder_sha256"):
        second.on_train_start()
    plans = published.configurations()["3d_fullres"]
    assert plans["swinfuse"] == first.provenance.to_dict()


def test_folds_that_start_at_once_with_two_settings_are_refused(published, monkeypatch):
    started()
    monkeypatch.setenv("SWINFUSE_INITIAL_LR", "3e-4")
    with pytest.raises(EncoderChoiceError, match=r"training is .*0.0001.* in that fold, .*0.0003"):
        started(fold=1)


@pytest.fixture
def change_spacing(copied, tmp_path, monkeypatch):
    """Plans the dataset again, in a copy of its preprocessed folder."""

    def change():
        preprocessed = tmp_path / "preprocessed"
        shutil.copytree(copied.preprocessed, preprocessed)
        monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
        path = preprocessed / PLAIN / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        plans["configurations"]["3d_fullres"]["spacing"] = [4.0, 2.0, 2.0]
        path.write_text(json.dumps(plans))

    return change


@pytest.mark.parametrize(
    ("fold", "arguments"), [(1, {}), (0, {"continue_training": True}), (0, {"only_run_validation": True})]
)
def test_a_trained_model_refuses_other_plans_and_keeps_its_own(copied, change_spacing, fold, arguments):
    publish_encoder(copied.encoder)
    change_spacing()
    before = (copied.model() / "plans.json").read_bytes()
    with pytest.raises(PlansError, match=r"spacing was .*, is \[4.0, 2.0, 2.0\]"):
        run_training("901", "3d_fullres", fold, TRAINER, device=CPU, **arguments)
    assert (copied.model() / "plans.json").read_bytes() == before


def test_folds_that_start_at_once_with_other_plans_are_refused(copied, weights, change_spacing):
    started()
    change_spacing()
    with pytest.raises(EncoderChoiceError, match=r"fold_0 .* spacing was .*, is \[4.0, 2.0, 2.0\]"):
        started(fold=1)


@pytest.mark.parametrize("arguments", [{"continue_training": True}, {"only_run_validation": True}])
def test_a_model_of_a_newer_version_is_refused(copied, arguments):
    path = copied.model() / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["swinfuse"]["plugin"] = "99.1.0"
    path.write_text(json.dumps(plans))
    with pytest.raises(VersionError, match=r"plans.json: written by nnunetv2-swinfuse 99.1.0; installed is"):
        run_training("901", "3d_fullres", 0, TRAINER, device=CPU, **arguments)


def test_another_nnunet_is_warned_of_in_the_log(published, monkeypatch):
    monkeypatch.setattr("nnunetv2_swinfuse.compatibility.NNUNET_BELOW", "2.8")
    make_trainer()
    log = next((published.model() / "fold_0").glob("training_log*")).read_text()
    assert "WARNING: nnunetv2 2.8" in log
    assert "may have changed" in log
