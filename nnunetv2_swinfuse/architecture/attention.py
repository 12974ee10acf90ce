"""Attention in shifted 3D windows (Liu et al., Swin Transformer, arXiv 2103.14030), on feature maps of any size.

Differs from MONAI's Swin UNETR, whose weights it can carry, in that no tensor depends on the size of the map, and that
the relative position bias of a window clamped to a small map is looked up at the true offsets, unless MONAI's lookup is
requested.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.biased_attention import biased_attention
from nnunetv2_swinfuse.architecture.topology import Triple, clamp_window
from nnunetv2_swinfuse.architecture.windows import window_layout


def relative_position_index(
    window: Triple, table_window: Triple, device: torch.device | None = None, as_monai: bool = False
) -> Tensor:
    """Row of the bias table for each pair of tokens of a window.

    Args:
        window: the window in use (z, y, x), along no axis larger than `table_window`.
        table_window: the window of the table; the table has prod(2 * table_window - 1) rows.
        device: device of the result.
        as_monai: look up a clamped window as MONAI does, for weights trained that way: its tokens, numbered with z
            running fastest, are treated as the first ones of the unclamped window.

    Returns:
        int64 (N, N) with N = prod(window); entry (i, j) belongs to the offset from token j to token i.
    """
    position = list(torch.meshgrid(*(torch.arange(size, device=device) for size in window), indexing="ij"))
    if as_monai:
        number = (position[2] * window[1] + position[1]) * window[0] + position[0]
        depth, height, _ = table_window
        position = [number % depth, number // depth % height, number // (depth * height)]
    index = torch.zeros((), dtype=torch.int64, device=device)
    for axis, full in zip(position, table_window, strict=True):
        flat = axis.reshape(-1)
        index = index * (2 * full - 1) + flat[:, None] - flat[None, :] + (full - 1)
    return index


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned relative position bias.

    Args:
        channels: channels of the feature map, a multiple of `num_heads`.
        num_heads: attention heads.
        window_size: window in tokens (z, y, x); clamped to smaller feature maps.
        monai_clamped_bias: see :func:`relative_position_index`.
    """

    def __init__(self, channels: int, num_heads: int, window_size: Triple, monai_clamped_bias: bool = False):
        super().__init__()
        self.monai_clamped_bias = monai_clamped_bias
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        rows = (2 * window_size[0] - 1) * (2 * window_size[1] - 1) * (2 * window_size[2] - 1)
        self.relative_position_bias = nn.Parameter(torch.zeros(rows, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias, std=0.02)

    def forward(self, x: Tensor, shifted: bool) -> Tensor:
        """Attends within (shifted) windows of a channels-last feature map.

        Args:
            x: (B, z, y, x, C).
            shifted: whether windows are moved by half their size, as every second block does.

        Returns:
            (B, z, y, x, C).
        """
        shape = (x.shape[1], x.shape[2], x.shape[3])
        window, shift = clamp_window(shape, self.window_size, shifted)
        layout = window_layout(x.shape[0], shape, window, shift, x.device)
        index = relative_position_index(window, self.window_size, x.device, self.monai_clamped_bias)
        bias = self.relative_position_bias[index].permute(2, 0, 1)
        # Padded tokens take part, as in Swin UNETR: masking them would be incompatible with every published checkpoint.
        qkv = self.qkv(layout.to_windows(x)).unflatten(-1, (3, self.num_heads, -1))
        attended = biased_attention(qkv, bias, layout.groups).flatten(2)
        return layout.from_windows(self.proj(attended), tuple(x.shape[:4]))
