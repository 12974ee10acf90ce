import json
import sys
from functools import partial

import pytest
import torch

from nnunetv2_swinfuse.benchmark import swin_unetr
from nnunetv2_swinfuse.benchmark.commands import base_environment
from nnunetv2_swinfuse.benchmark.swin_unetr import PaddedSwinUNETR
from nnunetv2_swinfuse.errors import BenchmarkError


@pytest.mark.slow
def test_swin_unetr_takes_patches_of_any_size():
    torch.manual_seed(0)
    network = PaddedSwinUNETR(1, 3, feature_size=12).eval()
    x = torch.randn(1, 1, 20, 36, 32)
    with torch.no_grad():
        y = network(x)
        padded = torch.zeros(1, 1, 32, 64, 32)
        padded[..., :20, :36, :32] = x
        expected = network.network(padded)[..., :20, :36, :32]
    assert y.shape == (1, 3, 20, 36, 32)
    assert torch.equal(y, expected)


@pytest.mark.slow
def test_swin_unetr_trains_on_tiny_patches():
    # MONAI's own fails: its bottleneck is one voxel.
    network = PaddedSwinUNETR(1, 2, feature_size=12).train()
    network(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.slow
def test_nnunet_trains_and_validates_it(workshop, monkeypatch):
    from nnunetv2.run.run_training import run_training

    monkeypatch.setattr(swin_unetr, "PaddedSwinUNETR", partial(PaddedSwinUNETR, feature_size=12))
    monkeypatch.setenv("nnUNet_extTrainer", base_environment("cpu", 1)["nnUNet_extTrainer"])
    for name, value in {"SEED": 0, "EPOCHS": 2, "ITERATIONS": 3, "VALIDATION_ITERATIONS": 1}.items():
        monkeypatch.setenv(f"BENCHMARK_{name}", str(value))
    monkeypatch.setenv("BENCHMARK_MIRRORING", "0")
    monkeypatch.setenv("BENCHMARK_MIRRORED_TRAINING", "1")
    monkeypatch.setenv("BENCHMARK_THREADS", "1")
    name = "nnUNetTrainerSwinUNETRSeeded"
    run_training("901", "3d_fullres", 0, name, device=torch.device("cpu"))
    fold = workshop.model(name) / "fold_0"
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    log = checkpoint["logging"]
    assert len(log["train_losses"]) == 2
    assert all(torch.isfinite(torch.tensor(losses)).all() for losses in (log["train_losses"], log["val_losses"]))
    # One epoch of warm-up, then the peak for random weights.
    assert log["lrs"] == pytest.approx([1.5e-4, 3e-4])
    assert {state["step"].item() for state in checkpoint["optimizer_state"]["state"].values()} == {6}
    cost = json.loads((fold / "cost.json").read_text())
    assert cost["parameters"] == sum(tensor.numel() for tensor in PaddedSwinUNETR(1, 3, 12).parameters())
    assert len(json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]) == 1


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(BenchmarkError, match=r'is not installed: .*pip install "\.\[benchmark\]" in a checkout'):
        PaddedSwinUNETR(1, 2)
