"""ResEncFUSEUNet: nnU-Net's residual encoder U-Net with the Domain Invariance Module, built from plans.json only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.cell_grid import token_spacing
from nnunetv2_swinfuse.architecture.convolutions import SkipPyramid
from nnunetv2_swinfuse.architecture.domain_invariance import planned_domain_invariance
from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.residual_encoder import ResidualEncoder, initialize_residual, residual_stem
from nnunetv2_swinfuse.architecture.topology import check_patch_size, refuse_unknown, stage_kernels


class ResEncFUSEUNet(nn.Module):
    """A U-Net on the residual encoder; all keyword arguments are JSON-serialisable and stored in plans.json.

    Without the module it is dynamic-network-architectures' `ResidualEncoderUNet`: the encoder's features are the skips.
    `patch_embed` (the stem) and `encoder` are pretrained; `decoder` starts from random weights, unless the whole
    network was pretrained.

    Args:
        input_channels: image channels, a cascade's one-hot channels included.
        num_classes: segmentation heads.
        deep_supervision: whether the decoder returns every resolution in training; can be changed later.
        strides: the plan's stride per stage (z, y, x), 1 or 2, the first all 1.
        kernel_sizes: the plan's convolution kernel per stage (z, y, x); 3 x 3 x 3 by default.
        spacing: the configuration's voxel spacing in mm (z, y, x), from which the Domain Invariance Module makes
            isotropic cells; isotropic by default.
        feature_size, depths, num_heads, domain_invariance: see :class:`EncoderSettings`.
        n_conv_per_stage_decoder: convolutions of each decoder stage.
        drop_path_rate: stochastic depth of the last stage.
        checkpointing: recompute stages in the backward pass to save memory.

    Raises:
        ValueError: naming the field, for strides or sizes that cannot be built, and for arguments of a newer version.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        spacing: Sequence[float] | None = None,
        feature_size: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        domain_invariance: Mapping[str, Any] | None,
        n_conv_per_stage_decoder: int = 1,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        **unknown: Any,
    ):
        super().__init__()
        refuse_unknown(unknown)
        self.settings = EncoderSettings(
            feature_size,
            tuple(depths),
            tuple(num_heads),
            domain_invariance=planned_domain_invariance(domain_invariance),
            backbone="resenc",
        )
        self.topology = self.settings.topology(strides)
        kernels = stage_kernels(kernel_sizes, len(self.topology.strides))
        self.patch_embed = residual_stem(input_channels, feature_size, kernels[0])
        self.encoder = ResidualEncoder(
            self.settings,
            self.topology.stage_strides,
            kernels,
            drop_path_rate,
            checkpointing,
            token_spacing(spacing, self.topology.patch_stride),
        )
        pyramid = SkipPyramid(self.encoder.output_channels, list(self.topology.strides), kernels)
        self.decoder = UNetDecoder(pyramid, num_classes, n_conv_per_stage_decoder, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, input_channels, z, y, x) to logits (B, num_classes, z, y, x), or a list of them, finest first."""
        return self.decode(x, self.encoder(self.patch_embed(x)))

    def decode(self, x: Tensor, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """What :meth:`forward` makes of an image and its features.

        Args:
            x: the image (B, input_channels, z, y, x).
            features: maps of the encoder (B, C, z, y, x), finest first.
        """
        return self.decoder(features)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all feature maps for one patch (z, y, x): nnU-Net's proxy for memory."""
        check_patch_size(input_size, self.topology)
        total = np.int64(self.patch_embed.compute_conv_feature_map_size(input_size))
        size = np.array(input_size)
        for stage, stride in zip(self.encoder.stages, self.topology.stage_strides, strict=True):
            total += stage.compute_conv_feature_map_size(size)
            size = size // np.array(stride)
        return total + self.decoder.compute_conv_feature_map_size(input_size)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation of this network; linear layers keep the encoder's."""
        initialize_residual(module)
