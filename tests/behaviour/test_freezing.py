"""The frozen encoder and linear probing in nnU-Net's own training, resumed, and under DDP."""

import os

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from nnunetv2.run.run_training import find_free_network_port, maybe_load_checkpoint
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_swinfuse.architecture.encoder_file import load_encoder
from tests.nnunetv2_swinfuse.training.workshop import make_trainer

pytestmark = pytest.mark.slow

FROZEN = "nnUNetTrainerSwinFUSEFrozen_5epochs"
PROBED = "nnUNetTrainerSwinFUSE_5epochs"


def weights_of(trainer, part=("patch_embed.", "encoder.")):
    state = trainer.network.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if name.startswith(part)}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def train_until(trainer, epoch):
    """nnU-Net's own loop, broken off as a cluster would after a checkpoint."""
    trainer.num_epochs, epochs = epoch, trainer.num_epochs
    trainer.on_train_end = lambda: None
    trainer.save_every = 1
    trainer.run_training()
    # nnU-Net writes no checkpoint after what it considers the last epoch.
    trainer.current_epoch -= 1
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    trainer.num_epochs = epochs


def resumed(name):
    trainer = make_trainer(name)
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    return trainer


def test_a_frozen_encoder_stays_as_pretrained_also_when_resumed(published):
    trainer = make_trainer(FROZEN)
    trainer.initialize()
    encoder, decoder = weights_of(trainer), weights_of(trainer, ("decoder.", "stem.", "skips."))
    pretrained = load_encoder(published.encoder).weights
    assert torch.equal(encoder["patch_embed.proj.weight"], pretrained["patch_embed.proj.weight"])
    train_until(trainer, 1)
    assert same(encoder, weights_of(trainer))
    assert not same(decoder, weights_of(trainer, ("decoder.", "stem.", "skips.")))
    trainer = resumed(FROZEN)
    modes, step = [], trainer.train_step

    def observed(batch):
        modes.append((trainer.network.encoder.training, trainer.network.decoder.training))
        return step(batch)

    trainer.train_step = observed
    train_until(trainer, 2)
    assert same(encoder, weights_of(trainer))
    assert set(modes) == {(False, True)}


def test_linear_probing_ends_where_it_was_asked_to_also_when_resumed(published, monkeypatch):
    monkeypatch.setenv("SWINFUSE_LINEAR_PROBE_EPOCHS", "2")
    trainer = make_trainer(PROBED)
    trainer.initialize()
    initial = weights_of(trainer)
    train_until(trainer, 1)
    assert same(initial, weights_of(trainer))
    # The setting is the model's now.
    monkeypatch.delenv("SWINFUSE_LINEAR_PROBE_EPOCHS")
    trainer = resumed(PROBED)
    train_until(trainer, 2)
    assert same(initial, weights_of(trainer))
    train_until(trainer, 3)
    trained = weights_of(trainer)
    assert not same(initial, trained)
    trainer = resumed(PROBED)
    assert same(trained, weights_of(trainer))
    train_until(trainer, 4)
    assert not same(trained, weights_of(trainer))
    # One epoch of warm-up each, and a pretrained layer's rate is 0.9 of the next.
    rates = sorted({group["lr"] for group in trainer.optimizer.param_groups}, reverse=True)
    assert rates == pytest.approx([trainer.optimizer.param_groups[0]["lr"] * 0.9**n for n in range(len(rates))])
    assert trainer.logger.get_checkpoint()["lrs"] == pytest.approx(
        [1e-4 * factor for factor in (0.5, 1.0, 0.75**0.9, 0.5**0.9)]
    )


def test_where_nothing_is_pretrained_probing_says_so(published, monkeypatch, capsys):
    monkeypatch.setenv("SWINFUSE_LINEAR_PROBE_EPOCHS", "2")
    make_trainer("nnUNetTrainerSwinFUSEScratch_5epochs")
    assert "linear_probe_epochs has no effect: nnUNetTrainerSwinFUSEScratch_5epochs" in capsys.readouterr().out


def ddp_worker(rank: int, port: int) -> None:
    """One of two processes as nnU-Net's `run_ddp` makes them, on CPUs: nnU-Net itself insists on CUDA and nccl."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "SWINFUSE_LINEAR_PROBE_EPOCHS": "1"}
    torch.manual_seed(rank)
    trainer = make_trainer(PROBED)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    trainer.configuration_manager.configuration["batch_size"] = 3
    trainer.initialize()
    # The rest of nnU-Net's `initialize` under DDP, without the device ids that only GPUs have.
    trainer.is_ddp, trainer.local_rank = True, rank
    trainer._set_batch_size_and_oversample()
    assert trainer.batch_size == [2, 1][rank]
    network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(trainer.network)
    trainer.network = DistributedDataParallel(network)
    trainer.loss = trainer._build_loss()
    data_loader = trainer.get_dataloaders()[0]
    before = {name: tensor.clone() for name, tensor in trainer.network.module.state_dict().items()}
    for epoch in range(3):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(2):
            batch = next(data_loader)
            assert len(batch["data"]) == trainer.batch_size
            trainer.train_step(batch)
        idle = {name for name, p in trainer.network.module.named_parameters() if p.requires_grad and p.grad is None}
        assert not idle
        state = trainer.network.module.state_dict()
        assert torch.equal(before["patch_embed.proj.weight"], state["patch_embed.proj.weight"]) == (epoch < 1)
        digest = torch.stack([tensor.double().sum() for tensor in state.values()])
        others = [torch.empty_like(digest) for _ in range(2)]
        torch.distributed.all_gather(others, digest)
        assert torch.equal(*others), "the processes' networks drifted apart"
    torch.distributed.destroy_process_group()


def test_two_processes_stay_one_network_through_probing_and_after(published):
    torch.multiprocessing.spawn(ddp_worker, (find_free_network_port(),), nprocs=2)
