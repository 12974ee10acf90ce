"""The Swin encoder: Domain Invariance Module, then Swin stages, on a patch embedding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.cell_grid import Spacing
from nnunetv2_swinfuse.architecture.encoder import DomainInvariantEncoder, EncoderSettings
from nnunetv2_swinfuse.architecture.operations import swin_operations
from nnunetv2_swinfuse.architecture.swin import SwinStage
from nnunetv2_swinfuse.architecture.topology import Triple


class SwinEncoder(DomainInvariantEncoder):
    """Domain Invariance Module and Swin stages on a patch embedding.

    Its features are the embedding after the module and the output of each stage, channels normalised.

    Args:
        settings: sizes.
        strides: stride of each stage's merging (z, y, x); at most as many as the settings have stages.
        drop_path_rate: stochastic depth, rising linearly from 0 at the first block to this at the last.
        checkpointing: trade time for memory in the Swin blocks.
        spacing: distance between the embedding's tokens (z, y, x), in any unit.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        strides: Sequence[Triple],
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        spacing: Spacing = (1.0, 1.0, 1.0),
    ):
        if len(strides) > len(settings.depths):
            raise ValueError(f"{len(strides)} merge strides for {len(settings.depths)} Swin stages")
        operations = partial(
            swin_operations,
            strides=tuple(strides),
            feature_size=settings.feature_size,
            depths=settings.depths,
            window_size=settings.window_size,
            mlp_ratio=settings.mlp_ratio,
        )
        super().__init__(settings, operations, spacing)
        depths = settings.depths[: len(strides)]
        rates = [drop_path_rate * block / max(sum(depths) - 1, 1) for block in range(sum(depths))]
        stages = []
        for index, stride in enumerate(strides):
            first = sum(depths[:index])
            stages.append(
                SwinStage(
                    settings.feature_size << index,
                    settings.num_heads[index],
                    (settings.window_size,) * 3,
                    stride,
                    settings.mlp_ratio,
                    rates[first : first + depths[index]],
                    checkpointing,
                    settings.monai_legacy_merging,
                    settings.monai_clamped_bias,
                )
            )
        self.stages = nn.ModuleList(stages)
        self.output_channels = [settings.feature_size << index for index in range(len(strides) + 1)]
        self.stages.apply(_initialize_linear)

    def features(self, embedding: Tensor) -> list[Tensor]:
        x = embedding.permute(0, 2, 3, 4, 1)
        features = [_normalized(x)]
        for stage in self.stages:
            x = stage(x)
            features.append(_normalized(x))
        return features


def _normalized(x: Tensor) -> Tensor:
    """Channels-last (B, z, y, x, C) to (B, C, z, y, x), each token's channels to mean 0 and variance 1."""
    return F.layer_norm(x, x.shape[-1:]).permute(0, 4, 1, 2, 3).contiguous()


def _initialize_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
