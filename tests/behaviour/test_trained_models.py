"""What follows a training: `--c`, `--val`, other folds, and a training anew."""

import json
import shutil

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint, run_training

from nnunetv2_swinfuse.architecture.encoder_file import load_encoder
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from nnunetv2_swinfuse.training.trainer import CheckpointError
from tests.nnunetv2_swinfuse.training.workshop import TRAINER, make_trainer, publish_encoder

CPU = torch.device("cpu")


def test_continue_needs_no_encoder_and_follows_the_schedule(copied, tmp_path, monkeypatch):
    # A length of the user's own, in the user's own folder of trainers.
    longer = "nnUNetTrainerSwinFUSE_2epochs"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "longer.py").write_text(
        "from nnunetv2_swinfuse.training.trainer import nnUNetTrainerSwinFUSE\n"
        f"class {longer}(nnUNetTrainerSwinFUSE):\n    length = 2\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "own"))
    copied.model().rename(copied.model(longer))
    # What nnUNetv2_train --c does, but for the validation at its end.
    trainer = get_trainer_from_args("901", "3d_fullres", 0, longer, continue_training=True, device=CPU)
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()
    checkpoint = copied.checkpoint(trainer=longer)
    recorded = copied.configurations(trainer=longer)["3d_fullres"]["swinfuse"]
    assert checkpoint["current_epoch"] == 2
    assert len(checkpoint["logging"]["train_losses"]) == 2
    # Epoch 0 was a training of one epoch, at the peak; epoch 1 comes after the one epoch of warm-up of two.
    assert checkpoint["logging"]["lrs"] == pytest.approx([1e-4, 1e-4])
    assert checkpoint["swinfuse"]["encoder_sha256"] == recorded["encoder_sha256"]
    steps = [state["step"].item() for state in checkpoint["optimizer_state"]["state"].values()]
    assert set(steps) == {4}


def test_val_needs_no_encoder(copied):
    summary = copied.model() / "fold_0" / "validation" / "summary.json"
    before = json.loads(summary.read_text())["mean"]
    summary.unlink()
    run_training("901", "3d_fullres", 0, TRAINER, only_run_validation=True, device=CPU)
    assert json.loads(summary.read_text())["mean"] == before


def test_a_restored_network_keeps_its_weights_whatever_was_published_since(copied):
    publish_encoder(copied.encoder, seed=1)
    trainer = make_trainer()
    maybe_load_checkpoint(trainer, False, True)
    weights = copied.checkpoint()["network_weights"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.network.state_dict().items())


def test_another_encoder_for_another_fold_is_refused_before_training(copied):
    recorded = copied.configurations()["3d_fullres"]["swinfuse"]
    publish_encoder(copied.encoder, seed=1)
    with pytest.raises(EncoderChoiceError, match=recorded["encoder_source"]):
        run_training("901", "3d_fullres", 1, TRAINER, device=CPU)
    assert not list(copied.model().glob("fold_1/checkpoint*"))


def test_the_same_encoder_serves_another_fold(copied, trained):
    copied.encoder.parent.mkdir()
    shutil.copyfile(trained.encoder, copied.encoder)
    before = copied.configurations()["3d_fullres"]
    trainer = make_trainer(fold=1)
    trainer.initialize()
    assert trainer.configuration_manager.configuration["architecture"] == before["architecture"]
    assert trainer.provenance.encoder_sha256 == before["swinfuse"]["encoder_sha256"]


def test_the_only_fold_may_be_trained_anew_from_another_encoder(copied):
    publish_encoder(copied.encoder, seed=1)
    trainer = make_trainer(fold=0)
    trainer.initialize()
    sha256 = load_encoder(copied.encoder).sha256
    assert trainer.provenance.encoder_sha256 == sha256
    saved = trainer.plans_manager.plans["configurations"]["3d_fullres"]["swinfuse"]
    assert saved["encoder_sha256"] == sha256


def test_changed_settings_of_a_trained_model_are_refused(copied, monkeypatch):
    monkeypatch.setenv("SWINFUSE_INITIAL_LR", "3e-4")
    with pytest.raises(ValueError, match=r"initial_lr is 0.0003 now, 0.0001 in"):
        run_training("901", "3d_fullres", 0, TRAINER, continue_training=True, device=CPU)


def test_a_damaged_checkpoint_is_named(copied):
    checkpoint = copied.model() / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=f"{checkpoint}: cannot be loaded"):
        run_training("901", "3d_fullres", 0, TRAINER, continue_training=True, device=CPU)
