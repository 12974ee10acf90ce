"""Patch embedding, patch merging and the stages of the Swin encoder, on channels-last maps (B, z, y, x, C).

After Swin UNETR (Hatamizadeh et al., arXiv 2201.01266): pre-norm blocks with regular and shifted windows in turn, then
patch merging. Unlike Swin UNETR's, patches and merging take the stride of nnU-Net's plan, 1 or 2 along each axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.regularization import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_swinfuse.architecture.attention import WindowAttention
from nnunetv2_swinfuse.architecture.topology import Triple


class PatchEmbedding(nn.Module):
    """Cuts the image into patches as large as the stride and projects each to `features` channels.

    The only pretrained tensors that depend on the number of input channels.
    """

    def __init__(self, input_channels: int, features: int, stride: Triple):
        super().__init__()
        self.proj = nn.Conv3d(input_channels, features, kernel_size=stride, stride=stride)

    def forward(self, image: Tensor) -> Tensor:
        """(B, input_channels, z, y, x) to (B, features, z / stride, y / stride, x / stride)."""
        return self.proj(image)


# First voxel (z, y, x) of each sub-grid that MONAI joined before version 1.5: two twice, two never.
MONAI_LEGACY_SUBGRIDS: tuple[Triple, ...] = (
    (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1),
)  # fmt: skip


class PatchMerging(nn.Module):
    """Joins the `prod(stride)` neighbours of each output position and projects them to twice the channels.

    Sub-grids are joined with the last axis running fastest.

    Args:
        channels: channels of the incoming map.
        stride: 1 or 2 along each axis (z, y, x).
        monai_legacy: where all three axes are halved, join the sub-grids that MONAI joined before version 1.5.
    """

    def __init__(self, channels: int, stride: Triple, monai_legacy: bool = False):
        super().__init__()
        self.stride = stride
        sz, sy, sx = stride
        self.subgrids: tuple[Triple, ...] = tuple(itertools.product(range(sz), range(sy), range(sx)))
        if monai_legacy and stride == (2, 2, 2):
            self.subgrids = MONAI_LEGACY_SUBGRIDS
        neighbours = math.prod(stride)
        self.norm = nn.LayerNorm(neighbours * channels)
        self.reduction = nn.Linear(neighbours * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, z, y, x, C) to (B, ceil(z / stride), ceil(y / stride), ceil(x / stride), 2C)."""
        padding = [-size % step for size, step in zip(x.shape[1:4], self.stride, strict=True)]
        if any(padding):
            x = F.pad(x, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        sz, sy, sx = self.stride
        grids = [x[:, z::sz, y::sy, x_::sx] for z, y, x_ in self.subgrids]
        return self.reduction(self.norm(torch.cat(grids, dim=-1)))


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.expand = nn.Linear(channels, int(channels * ratio))
        self.reduce = nn.Linear(int(channels * ratio), channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(F.gelu(self.expand(x)))


class SwinBlock(nn.Module):
    """Pre-norm window attention and feed-forward network, each with a residual and stochastic depth."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: Triple,
        shifted: bool,
        mlp_ratio: float,
        drop_path: float,
        monai_clamped_bias: bool = False,
    ):
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, num_heads, window_size, monai_clamped_bias)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, mlp_ratio)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x), self.shifted))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SwinStage(nn.Module):
    """Swin blocks at one resolution, then patch merging to the next.

    Args:
        channels: channels of the incoming map; twice as many leave.
        num_heads: heads of each block.
        window_size: window in tokens (z, y, x).
        stride: stride of the merging (z, y, x).
        mlp_ratio: hidden channels of the feed-forward network, relative to `channels`.
        drop_path: stochastic depth rate of each block; its length is the stage's depth.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
        monai_legacy_merging, monai_clamped_bias: see :class:`EncoderSettings`.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: Triple,
        stride: Triple,
        mlp_ratio: float,
        drop_path: Sequence[float],
        checkpointing: bool = False,
        monai_legacy_merging: bool = False,
        monai_clamped_bias: bool = False,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(
            SwinBlock(channels, num_heads, window_size, index % 2 == 1, mlp_ratio, rate, monai_clamped_bias)
            for index, rate in enumerate(drop_path)
        )
        self.merging = PatchMerging(channels, stride, monai_legacy_merging)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.merging(x)
