"""SwinFUSEUNet: the Swin encoder with nnU-Net's convolutions and decoder around it, built from plans.json only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.cell_grid import token_spacing
from nnunetv2_swinfuse.architecture.convolutions import MAX_FEATURES, SkipPyramid
from nnunetv2_swinfuse.architecture.domain_invariance import planned_domain_invariance
from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.swin import PatchEmbedding
from nnunetv2_swinfuse.architecture.swin_encoder import SwinEncoder
from nnunetv2_swinfuse.architecture.topology import check_patch_size, refuse_unknown, stage_kernels

# The last decoder stage is as wide as the stem, and the segmentation is read from it. Of 6 channels, trainings of 500
# iterations leave organs out that coarser stages of the same decoder find (docs/method.md, "Width at full resolution").
MIN_STEM_FEATURES = 16


def planned_stem_features(feature_size: int) -> int:
    """Channels of stem and last decoder stage that new plans have.

    Half the feature size, since convolutions at full resolution are most of the network's cost, but no fewer than
    :data:`MIN_STEM_FEATURES`.
    """
    return max(feature_size // 2, MIN_STEM_FEATURES)


class SwinFUSEUNet(nn.Module):
    """A U-Net whose encoder is SwinFUSE's; all keyword arguments are JSON-serialisable and stored in plans.json.

    Stage 0 is convolved at full resolution, stage 1 is the patch embedding and the Domain Invariance Module, stages 2
    and on are Swin stages, and those beyond the Swin encoder strided convolutions. A convolution adapts each stage's
    features to its skip, and dynamic-network-architectures' `UNetDecoder` turns the skips into a segmentation.

    `patch_embed` and `encoder` are pretrained; `stem`, `skips`, `bottleneck` and `decoder` start from random weights,
    unless the whole network was pretrained.

    Args:
        input_channels: image channels, a cascade's one-hot channels included.
        num_classes: segmentation heads.
        deep_supervision: whether the decoder returns every resolution in training; can be changed later.
        strides: the plan's stride per stage (z, y, x), 1 or 2, the first all 1.
        kernel_sizes: the plan's convolution kernel per stage (z, y, x); 3 x 3 x 3 by default.
        spacing: the configuration's voxel spacing in mm (z, y, x), from which the Domain Invariance Module makes
            isotropic cells; isotropic by default.
        feature_size, depths, num_heads, window_size, mlp_ratio, domain_invariance, monai_legacy_merging,
            monai_clamped_bias: see :class:`EncoderSettings`.
        stem_features: channels at full resolution. Plans name them, see :func:`planned_stem_features`; those of
            earlier versions do not, and have half the feature size.
        max_features: most channels of a skip, nnU-Net's 320.
        n_conv_per_stage_decoder: convolutions of each decoder stage.
        drop_path_rate: stochastic depth of the last Swin block.
        checkpointing: recompute Swin blocks in the backward pass to save memory.

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
        feature_size: int = EncoderSettings.feature_size,
        depths: Sequence[int] = EncoderSettings.depths,
        num_heads: Sequence[int] = EncoderSettings.num_heads,
        window_size: int = EncoderSettings.window_size,
        mlp_ratio: float = EncoderSettings.mlp_ratio,
        domain_invariance: Mapping[str, Any] | None,
        monai_legacy_merging: bool = EncoderSettings.monai_legacy_merging,
        monai_clamped_bias: bool = EncoderSettings.monai_clamped_bias,
        stem_features: int | None = None,
        max_features: int = MAX_FEATURES,
        n_conv_per_stage_decoder: int = 2,
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
            window_size,
            mlp_ratio,
            planned_domain_invariance(domain_invariance),
            monai_legacy_merging,
            monai_clamped_bias,
        )
        self.topology = self.settings.topology(strides)
        stages = len(self.topology.strides)
        kernels = stage_kernels(kernel_sizes, stages)
        self.patch_embed = PatchEmbedding(input_channels, feature_size, self.topology.patch_stride)
        self.encoder = SwinEncoder(
            self.settings,
            self.topology.stage_strides,
            drop_path_rate,
            checkpointing,
            token_spacing(spacing, self.topology.patch_stride),
        )
        swin_channels = self.encoder.output_channels
        stem_features = stem_features or max(feature_size // 2, 1)
        skip_channels = [stem_features, *(min(channels, max_features) for channels in swin_channels)]
        skip_channels += [skip_channels[-1]] * (stages - len(skip_channels))
        pyramid = SkipPyramid(skip_channels, list(self.topology.strides), kernels)
        self.stem = pyramid.convolutions(2, input_channels, 0)
        self.skips = nn.ModuleList(
            pyramid.convolutions(1, channels, stage) for stage, channels in enumerate(swin_channels, start=1)
        )
        first_convolution_stage = 1 + len(swin_channels)
        self.bottleneck = nn.ModuleList(
            pyramid.convolutions(2, skip_channels[stage - 1], stage, stride)
            for stage, stride in enumerate(self.topology.convolution_strides, start=first_convolution_stage)
        )
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
        skips = [self.stem(x), *(skip(feature) for skip, feature in zip(self.skips, features, strict=True))]
        for stage in self.bottleneck:
            skips.append(stage(skips[-1]))
        return self.decoder(skips)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all feature maps for one patch (z, y, x): nnU-Net's proxy for memory.

        Swin blocks are counted with what they keep for the backward pass: norms, queries, keys and values, attention
        output, projection and the feed-forward network's hidden layer.
        """
        check_patch_size(input_size, self.topology)
        sizes = [np.array(input_size)]
        for stride in self.topology.strides[1:]:
            sizes.append(sizes[-1] // np.array(stride))
        total = np.int64(self.stem.compute_conv_feature_map_size(sizes[0]))
        for skip, size in zip(self.skips, sizes[1:], strict=False):
            total += skip.compute_conv_feature_map_size(size)
        for stage, size in zip(self.bottleneck, sizes[len(self.skips) :], strict=False):
            total += stage.compute_conv_feature_map_size(size)
        total += np.prod([self.settings.feature_size, *sizes[1]], dtype=np.int64)
        per_block = 8 + 2 * self.settings.mlp_ratio
        for index, depth in enumerate(self.settings.depths[: len(self.topology.stage_strides)]):
            tokens = np.prod(sizes[1 + index], dtype=np.int64)
            total += np.int64(tokens * self.encoder.output_channels[index] * per_block * depth)
        return total + self.decoder.compute_conv_feature_map_size(input_size)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation of convolutions; linear layers keep the encoder's."""
        InitWeights_He(1e-2)(module)
