"""Attention in shifted 3D windows (Liu et al., Swin Transformer, arXiv 2103.14030), on feature maps of any size.

Differs from MONAI's Swin UNETR, whose weights it can carry, in three ways: the relative position bias of a window
clamped to a small feature map is looked up at the true offsets; windows that share a mask (at most eight groups) are
attended to together, so that the mask is never expanded to all windows; and nothing depends on the size of the map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.topology import Triple, clamp_window


def relative_position_index(window: Triple, table_window: Triple, device: torch.device | None = None) -> Tensor:
    """Row of the bias table for each pair of tokens of a window.

    Args:
        window: the window in use, along no axis larger than `table_window`.
        table_window: the window that the table was made for; the table has prod(2 * table_window - 1) rows.

    Returns:
        int64 (N, N) with N = prod(window); entry (i, j) belongs to the offset from token j to token i.
    """
    index = torch.zeros((1,) * 6, dtype=torch.int64, device=device)
    for axis, (size, full) in enumerate(zip(window, table_window, strict=True)):
        position = torch.arange(size, device=device)
        offset = position[:, None] - position[None, :] + (full - 1)
        view = [1] * 6
        view[axis], view[3 + axis] = size, size
        index = index * (2 * full - 1) + offset.reshape(view)
    tokens = window[0] * window[1] * window[2]
    return index.reshape(tokens, tokens)


def separated_pairs(window: Triple, shift: Triple, last: tuple[bool, bool, bool], device: torch.device) -> Tensor:
    """Pairs of tokens that lie in one window only because the shift wrapped around the border.

    Args:
        window: window size in tokens (z, y, x).
        shift: how far the map was rolled along each axis, 0 where it was not.
        last: whether the window is the last one along each axis; only those hold wrapped tokens.

    Returns:
        bool (N, N), True where attention must not pass.
    """
    region = torch.zeros((1, 1, 1), dtype=torch.int64, device=device)
    for axis in range(3):
        wrapped = torch.zeros(window[axis], dtype=torch.int64, device=device)
        if last[axis] and shift[axis]:
            wrapped = (torch.arange(window[axis], device=device) >= window[axis] - shift[axis]).to(torch.int64)
        view = [1, 1, 1]
        view[axis] = window[axis]
        region = region * 2 + wrapped.reshape(view)
    region = region.reshape(-1)
    return region[:, None] != region[None, :]


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned relative position bias.

    Args:
        channels: channels of the feature map, a multiple of `num_heads`.
        num_heads: attention heads.
        window_size: window in tokens (z, y, x); clamped to smaller feature maps.
    """

    def __init__(self, channels: int, num_heads: int, window_size: Triple):
        super().__init__()
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
        depth, height, width = x.shape[1:4]
        window, shift = clamp_window((depth, height, width), self.window_size, shifted)
        padding = [-size % step for size, step in zip(x.shape[1:4], window, strict=True)]
        # Padded tokens take part, as in Swin UNETR: masking them would part with every published checkpoint.
        x = F.pad(x, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        if any(shift):
            x = torch.roll(x, [-s for s in shift], dims=(1, 2, 3))
        index = relative_position_index(window, self.window_size, x.device)
        bias = self.relative_position_bias[index].permute(2, 0, 1)
        windows = self._attend_groups(partition_windows(self.qkv(x), window), bias, window, shift, ())
        x = self.proj(merge_windows(windows, window))
        if any(shift):
            x = torch.roll(x, list(shift), dims=(1, 2, 3))
        return x[:, :depth, :height, :width]

    def _attend_groups(
        self, qkv: Tensor, bias: Tensor, window: Triple, shift: Triple, last: tuple[bool, ...]
    ) -> Tensor:
        """Splits the windows axis by axis into inner and last ones; each group has one mask."""
        axis = len(last)
        if axis == 3:
            if any(flag and s for flag, s in zip(last, shift, strict=True)):
                wrapped = separated_pairs(window, shift, (last[0], last[1], last[2]), qkv.device)
                bias = bias.masked_fill(wrapped, float("-inf"))
            return self._attend(qkv, bias)
        count = qkv.shape[1 + axis]
        if not shift[axis] or count == 1:
            return self._attend_groups(qkv, bias, window, shift, (*last, True))
        inner, border = qkv.split([count - 1, 1], dim=1 + axis)
        return torch.cat(
            [
                self._attend_groups(inner, bias, window, shift, (*last, False)),
                self._attend_groups(border, bias, window, shift, (*last, True)),
            ],
            dim=1 + axis,
        )

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Attention of each window of (B, nz, ny, nx, N, 3C) under one bias (heads, N, N)."""
        leading, tokens, channels = qkv.shape[:4], qkv.shape[4], qkv.shape[5] // 3
        qkv = qkv.reshape(-1, tokens, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype)[None])
        return out.transpose(1, 2).reshape(*leading, tokens, channels)


def partition_windows(x: Tensor, window: Triple) -> Tensor:
    """(B, z, y, x, C), divisible by the window, to (B, nz, ny, nx, N, C) with N = prod(window)."""
    batch, depth, height, width, channels = x.shape
    wz, wy, wx = window
    x = x.reshape(batch, depth // wz, wz, height // wy, wy, width // wx, wx, channels)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, depth // wz, height // wy, width // wx, wz * wy * wx, channels)


def merge_windows(windows: Tensor, window: Triple) -> Tensor:
    """Inverse of :func:`partition_windows`."""
    batch, nz, ny, nx, _, channels = windows.shape
    wz, wy, wx = window
    x = windows.reshape(batch, nz, ny, nx, wz, wy, wx, channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(batch, nz * wz, ny * wy, nx * wx, channels)
