import sys

import pytest
import torch

from nnunetv2_swinfuse.benchmark.swin_unetr import PaddedSwinUNETR
from nnunetv2_swinfuse.errors import BenchmarkError


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


def test_swin_unetr_trains_on_tiny_patches():
    # MONAI's own fails: its bottleneck is one voxel.
    network = PaddedSwinUNETR(1, 2, feature_size=12).train()
    network(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(BenchmarkError, match=r'is not installed: .*pip install "\.\[benchmark\]" in a checkout'):
        PaddedSwinUNETR(1, 2)
