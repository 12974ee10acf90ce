"""What other design choices around the same Swin encoder would cost: stem, decoder, norm and memory format.

    python benchmarks/design_choices.py --quick
    python benchmarks/design_choices.py --bf16

The first row is the network as it is: plain convolutions at full resolution, half the feature size, instance norm.
"""

from __future__ import annotations

import sys

import torch
from dynamic_network_architectures.building_blocks.residual import StackedResidualBlocks
from measure import Competitors, check, compare, largest_difference, outputs_of, parse, random_input, report
from network import ours
from torch import Tensor, nn


def narrow_stem(shape: tuple[int, ...]) -> nn.Module:
    return ours(shape, stem_features=16)


def wide_stem(shape: tuple[int, ...]) -> nn.Module:
    return ours(shape, stem_features=48)


def residual_stem(shape: tuple[int, ...]) -> nn.Module:
    network = ours(shape)
    network.stem = StackedResidualBlocks(
        1, nn.Conv3d, 1, 24, 3, 1, True, nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None,
        nn.LeakyReLU, {"inplace": True},
    )  # fmt: skip
    return network


def one_convolution_in_the_decoder(shape: tuple[int, ...]) -> nn.Module:
    return ours(shape, n_conv_per_stage_decoder=1)


def batch_norm(shape: tuple[int, ...]) -> nn.Module:
    network = ours(shape)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm3d):
                setattr(module, name, nn.BatchNorm3d(child.num_features))
    return network


class ChannelsLast(nn.Module):
    """The network and its input in the memory format channels_last_3d."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.to(memory_format=torch.channels_last_3d))


def channels_last(shape: tuple[int, ...]) -> nn.Module:
    return ChannelsLast(ours(shape))


def main() -> None:
    options = parse(__doc__)
    competitors = Competitors(
        {
            "as it is": ours,
            "stem of 16 channels": narrow_stem,
            "stem of 48 channels": wide_stem,
            "residual stem": residual_stem,
            "one convolution a decoder stage": one_convolution_in_the_decoder,
            "batch norm": batch_norm,
            "channels_last_3d": channels_last,
        }
    )
    shape = options.shapes[0]
    x = random_input(competitors, shape, 1, torch.device("cpu"))
    with torch.no_grad():
        pair = [outputs_of(make(shape).eval(), x) for make in (channels_last, ours)]
    checks = {"channels_last_3d": check("channels_last_3d", largest_difference(*pair), 1e-3)}
    rows = compare(competitors, options)
    report("Design choices, around the encoder", "python " + " ".join(sys.argv), checks, rows, options)


if __name__ == "__main__":
    main()
