"""nnU-Net's residual encoder with the Domain Invariance Module behind its stem.

Stem and stages are those of dynamic-network-architectures' `ResidualEncoder`, built from the same blocks (Isensee et
al., nnU-Net Revisited, arXiv 2404.09556); what comes between them is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_swinfuse.architecture.cell_grid import Spacing
from nnunetv2_swinfuse.architecture.convolutions import MAX_FEATURES, convolutions, residual_blocks
from nnunetv2_swinfuse.architecture.encoder import DomainInvariantEncoder, EncoderSettings
from nnunetv2_swinfuse.architecture.operations import residual_operations
from nnunetv2_swinfuse.architecture.topology import Triple


def residual_stem(input_channels: int, features: int, kernel: Triple = (3, 3, 3)) -> StackedConvBlocks:
    """One convolution at full resolution: (B, input_channels, z, y, x) to (B, features, z, y, x).

    The only pretrained tensors that depend on the number of input channels.
    """
    stem = convolutions(1, input_channels, features, kernel)
    return stem.apply(initialize_residual)


class ResidualEncoder(DomainInvariantEncoder):
    """Domain Invariance Module and residual stages on the output of a stem.

    Its features are the output of each stage, the first at full resolution; nothing depends on the patch size.

    Args:
        settings: sizes, with the backbone `resenc`.
        strides: stride of each stage (z, y, x), the first all 1.
        kernels: convolution kernel of each stage (z, y, x); 3 x 3 x 3 when not given.
        drop_path_rate: stochastic depth, rising linearly from 0 in the first stage to this in the last.
        checkpointing: recompute each stage in the backward pass instead of keeping its activations.
        spacing: distance between voxels (z, y, x), in any unit.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        strides: Sequence[Triple],
        kernels: Sequence[Triple] | None = None,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        spacing: Spacing = (1.0, 1.0, 1.0),
    ):
        count = len(strides)
        output_channels = [min(settings.feature_size << index, MAX_FEATURES) for index in range(count)]
        inputs = [settings.feature_size, *output_channels]
        kernels = kernels or [(3, 3, 3)] * count
        depths = settings.stage_depths(count)
        operations = partial(
            residual_operations, strides=tuple(strides), kernels=tuple(kernels), channels=inputs, depths=depths
        )
        super().__init__(settings, operations, spacing)
        self.checkpointing = checkpointing
        self.output_channels = output_channels
        self.stages = nn.ModuleList(
            residual_blocks(
                depths[index],
                inputs[index],
                self.output_channels[index],
                kernels[index],
                strides[index],
                drop_path_rate * index / max(count - 1, 1),
            )
            for index in range(count)
        )
        self.stages.apply(initialize_residual)

    def features(self, embedding: Tensor) -> list[Tensor]:
        x, features = embedding, []
        for stage in self.stages:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
            features.append(x)
        return features

    def tokens(self, embedding: Tensor) -> tuple[Tensor, Triple]:
        """Means over 2 x 2 x 2 voxels, as large as a patch of the Swin encoder: a voxel alone shows no tissue."""
        return super().tokens(F.avg_pool3d(embedding, 2, ceil_mode=True, count_include_pad=False))


def initialize_residual(module: nn.Module) -> None:
    """As dynamic-network-architectures' `ResidualEncoderUNet`: every residual block begins as its shortcut."""
    InitWeights_He(1e-2)(module)
    init_last_bn_before_add_to_0(module)
