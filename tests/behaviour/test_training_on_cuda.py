"""nnU-Net's training step with our trainer as on a GPU, without one."""

import pytest
import torch

from tests.fake_cuda import CUDA, HiddenRead, fake_cuda
from tests.nnunetv2_swinfuse.training.workshop import make_trainer

# nnU-Net returns the loss as numpy; torch's scaler asks whether gradients were finite before it calls the optimiser.
ALLOWED = ("nnUNetTrainer/nnUNetTrainer.py", "amp/grad_scaler.py")


def on_cuda(trainer):
    trainer.network.to(CUDA).train()
    trainer.device = CUDA
    trainer.grad_scaler = torch.amp.GradScaler("cuda")
    trainer.optimizer, _ = trainer.configure_optimizers()


@pytest.mark.parametrize("name", ["nnUNetTrainerSwinFUSE_1epoch", "nnUNetTrainerSwinFUSEFrozen_1epoch"])
def test_a_step_reads_only_what_nnunet_reads(published, name):
    trainer = make_trainer(name)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    with fake_cuda(ALLOWED) as reads:
        on_cuda(trainer)
        for _ in range(2):
            trainer.train_step(batch)
        stepped = [parameter for parameter in trainer.network.parameters() if parameter.grad is not None]
        assert all(parameter.device == CUDA for parameter in stepped)
    assert len(stepped) > 20
    files = [place.rsplit(":")[0] for place in reads]
    # Of each step: the loss, and one question of the scaler.
    assert [sum(file.endswith(ending) for file in files) for ending in ALLOWED] == [2, 2]


def test_a_read_in_the_optimisation_would_be_seen(published, monkeypatch):
    trainer = make_trainer()
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    with fake_cuda(ALLOWED):
        on_cuda(trainer)
        trainer.optimizer.register_step_pre_hook(lambda *_: float(next(trainer.network.parameters()).grad.sum()))
        with pytest.raises(HiddenRead, match=r"test_training_on_cuda\.py"):
            trainer.train_step(batch)
