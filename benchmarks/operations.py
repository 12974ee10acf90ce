"""Operations of a forward pass, counted, not timed: the figures of docs/architecture.md and docs/method.md."""

from __future__ import annotations

import torch
from monai.networks.nets import SwinUNETR
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from pretraining.configuration import Configuration
from pretraining.model import PretrainingModel
from pretraining.preset_files import load_preset, preset_names


def count(module: nn.Module, inputs: torch.Tensor) -> float:
    """GFLOP of a forward pass; attention is counted as the matrix products it consists of."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module.eval()(inputs)
    return counter.get_total_flops() / 1e9


image, embedding = torch.zeros(1, 1, 96, 96, 96), torch.zeros(1, 48, 48, 48, 48)
strides = [[1, 1, 1], *[[2, 2, 2]] * 5]
network = SwinFUSEUNet(1, 14, False, **plans_architecture(strides, EncoderSettings())["arch_kwargs"])
print("| part | GFLOP |\n| --- | --- |")
print(f"| DIM, at most 2048 cells | {count(network.encoder.domain_invariance, embedding):.1f} |")
print(f"| DIM and Swin stages | {count(network.encoder, embedding):.1f} |")
print(f"| SwinFUSEUNet | {count(network, image):.1f} |")
print(f"| MONAI SwinUNETR, feature size 48 | {count(SwinUNETR(1, 14, feature_size=48), image):.1f} |")

print("\n| DIM relative to the backbone after it, at tokens per axis | 16 | 20x28x20 | 32 | 48 | 64 |")
print("| --- | --- | --- | --- | --- | --- |")
MAPS = ((16, 16, 16), (20, 28, 20), (32, 32, 32), (48, 48, 48), (64, 64, 64))
for preset in preset_names():
    with torch.device("meta"):
        encoder = PretrainingModel(Configuration.from_dict(load_preset(preset))).encoder
        shares = []
        for shape in MAPS:
            tokens = torch.zeros(1, encoder.output_channels[0], *shape)
            module = count(encoder.domain_invariance, tokens)
            shares.append(module / (count(encoder, tokens) - module))
    print(f"| {preset} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
