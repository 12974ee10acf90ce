"""nnU-Net's convolutions, as its planners write them into plans: with bias, instance norm and leaky ReLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynamic_network_architectures.building_blocks.residual import StackedResidualBlocks
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from torch import nn

from nnunetv2_swinfuse.architecture.topology import Triple

# nnU-Net's most channels of a 3d network.
MAX_FEATURES = 320
NORM = {"eps": 1e-5, "affine": True}
NONLIN = {"inplace": True}
UNSTRIDED = (1, 1, 1)


def convolutions(
    count: int, input_channels: int, channels: int, kernel: Triple, stride: Triple = UNSTRIDED
) -> StackedConvBlocks:
    """`count` blocks of convolution, norm and leaky ReLU; the first has the stride."""
    return StackedConvBlocks(
        count, nn.Conv3d, input_channels, channels, kernel, stride,
        True, nn.InstanceNorm3d, NORM, None, None, nn.LeakyReLU, NONLIN,
    )  # fmt: skip


def residual_blocks(
    count: int, input_channels: int, channels: int, kernel: Triple, stride: Triple, drop_path: float = 0.0
) -> StackedResidualBlocks:
    """`count` residual blocks of two convolutions each (BasicBlockD); the first has the stride.

    Args:
        count: how many.
        input_channels, channels: channels before and after.
        kernel: kernel size of every convolution (z, y, x).
        stride: stride of the first block (z, y, x).
        drop_path: stochastic depth of each block.
    """
    return StackedResidualBlocks(
        count, nn.Conv3d, input_channels, channels, kernel, stride,
        True, nn.InstanceNorm3d, NORM, None, None, nn.LeakyReLU, NONLIN, stochastic_depth_p=drop_path,
    )  # fmt: skip


@dataclass(frozen=True)
class SkipPyramid:
    """What `UNetDecoder` reads from an encoder. Not a module: the decoder would register the encoder a second time."""

    output_channels: list[int]
    strides: list[Triple]
    kernel_sizes: list[Triple]
    conv_op: type[nn.Module] = nn.Conv3d
    conv_bias: bool = True
    norm_op: type[nn.Module] = nn.InstanceNorm3d
    norm_op_kwargs: Mapping[str, Any] = field(default_factory=lambda: NORM)
    dropout_op: None = None
    dropout_op_kwargs: None = None
    nonlin: type[nn.Module] = nn.LeakyReLU
    nonlin_kwargs: Mapping[str, Any] = field(default_factory=lambda: NONLIN)

    def convolutions(
        self, count: int, input_channels: int, stage: int, stride: Triple = UNSTRIDED
    ) -> StackedConvBlocks:
        """:func:`convolutions` that end with the channels of a stage's skip."""
        return convolutions(count, input_channels, self.output_channels[stage], self.kernel_sizes[stage], stride)
