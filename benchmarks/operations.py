"""GFLOP of a forward pass on one 96^3 image, counted, not timed: the figures of docs/architecture.md."""

from __future__ import annotations

import torch
from monai.networks.nets import SwinUNETR
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_swinfuse.architecture.domain_invariance import DomainInvariance, DomainInvarianceSettings
from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet


def count(module: nn.Module, inputs: torch.Tensor) -> float:
    """GFLOP of a forward pass; attention is counted as the matrix products it consists of."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module.eval()(inputs)
    return counter.get_total_flops() / 1e9


image, embedding = torch.zeros(1, 1, 96, 96, 96), torch.zeros(1, 48, 48, 48, 48)
strides = [[1, 1, 1], *[[2, 2, 2]] * 5]
network = SwinFUSEUNet(1, 14, False, **plans_architecture(strides, EncoderSettings())["arch_kwargs"])
print("| part | GFLOP |\n| --- | --- |")
print(f"| DIM, at most 2048 tokens | {count(network.encoder.domain_invariance, embedding):.1f} |")
wide = DomainInvariance(48, 3, DomainInvarianceSettings(max_cells=4096))
print(f"| DIM, at most 4096 tokens | {count(wide, embedding):.1f} |")
print(f"| DIM and Swin stages | {count(network.encoder, embedding):.1f} |")
print(f"| SwinFUSEUNet | {count(network, image):.1f} |")
print(f"| MONAI SwinUNETR, feature size 48 | {count(SwinUNETR(1, 14, feature_size=48), image):.1f} |")
