"""Where the tokens of a feature map go when it is cut into (shifted) windows.

Shift, padding, partition and the grouping of windows that share a mask are one rearrangement of tokens: one copy to
the windows, one back. Shifted windows have at most eight masks (inner or last window along each axis), so a mask is
never expanded to all windows.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple


class WindowGroup(NamedTuple):
    """Consecutive windows with one mask.

    Attributes:
        windows: how many.
        separated: bool (N, N), True where attention must not pass; None where it may everywhere.
    """

    windows: int
    separated: Tensor | None


class WindowLayout(NamedTuple):
    """A cut of a batch of feature maps into windows of N = prod(window) tokens, ordered by group.

    Attributes:
        position: int64 (B * z * y * x,), for each token of the maps its place among the windows' tokens.
        groups: the windows in order.
        tokens: N.
    """

    position: Tensor
    groups: tuple[WindowGroup, ...]
    tokens: int

    def to_windows(self, x: Tensor) -> Tensor:
        """(B, z, y, x, C) to (windows, N, C); tokens of the padding are zero."""
        channels = x.shape[-1]
        windows = sum(group.windows for group in self.groups)
        out = x.new_zeros(windows * self.tokens, channels)
        return out.index_copy(0, self.position, x.reshape(-1, channels)).unflatten(0, (windows, self.tokens))

    def from_windows(self, windows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Inverse of :meth:`to_windows` for maps of `shape` (B, z, y, x); the padding is dropped."""
        tokens = _TakeOnce.apply(windows.flatten(0, 1), self.position)
        return tokens.unflatten(0, shape)


def window_layout(
    batch: int, shape: Triple, window: Triple, shift: Triple, device: torch.device | None = None
) -> WindowLayout:
    """Cuts maps padded at their far borders to whole windows, moved by `shift` tokens (Liu et al., arXiv 2103.14030).

    Args:
        batch: how many maps.
        shape: tokens along each axis (z, y, x).
        window: along no axis longer than the map.
        shift: 0 along an axis whose windows are not moved.
        device: where the indices are needed.
    """
    # Tensors without values (FakeTensorMode: export, estimates of memory) must neither stay in the cache for
    # ordinary forward passes nor meet ordinary tensors from it.
    ordinary = not torch.compiler.is_compiling() and type(torch.empty(0)) is Tensor
    build = _cached_window_layout if ordinary else _window_layout
    return build(batch, shape, window, shift, device)


def _window_layout(
    batch: int, shape: Triple, window: Triple, shift: Triple, device: torch.device | None
) -> WindowLayout:
    counts = tuple(math.ceil(size / step) for size, step in zip(shape, window, strict=True))
    padded = tuple(count * step for count, step in zip(counts, window, strict=True))
    rolled = torch.arange(batch * math.prod(padded), device=device).reshape(batch, *padded)
    rolled = torch.roll(rolled, [-s for s in shift], dims=(1, 2, 3))
    windows = rolled.unflatten(3, (-1, window[2])).unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    windows = windows.permute(0, 1, 3, 5, 2, 4, 6)  # (B, nz, ny, nx, wz, wy, wx)

    # Along a shifted axis the last window holds tokens from both ends of the map.
    parts: list[list[tuple[slice, bool]]] = []
    for count, step in zip(counts, shift, strict=True):
        inner_and_last = [(slice(0, count - 1), False), (slice(count - 1, count), True)]
        parts.append(inner_and_last if step else [(slice(None), False)])
    groups, order = [], []
    for (z, last_z), (y, last_y), (x, last_x) in itertools.product(*parts):
        members = windows[:, z, y, x].reshape(-1)
        last = (last_z, last_y, last_x)
        separated = separated_pairs(window, shift, last, device) if any(last) else None
        order.append(members)
        groups.append(WindowGroup(members.numel() // math.prod(window), separated))
    position = torch.empty_like(rolled).reshape(-1)
    position[torch.cat(order)] = torch.arange(position.numel(), device=device)
    position = position.reshape(batch, *padded)[:, : shape[0], : shape[1], : shape[2]].reshape(-1)
    return WindowLayout(position, tuple(groups), math.prod(window))


@functools.lru_cache(maxsize=64)
def _cached_window_layout(
    batch: int, shape: Triple, window: Triple, shift: Triple, device: torch.device | None
) -> WindowLayout:
    # Indices created in inference mode could not be used in training afterwards.
    with torch.inference_mode(False):
        return _window_layout(batch, shape, window, shift, device)


def separated_pairs(
    window: Triple, shift: Triple, last: tuple[bool, bool, bool], device: torch.device | None = None
) -> Tensor:
    """Pairs of tokens that lie in one window only because the shift wrapped around the border.

    Args:
        window: window size in tokens (z, y, x).
        shift: how far the map was rolled along each axis, 0 where it was not.
        last: whether the window is the last one along each axis; only those hold wrapped tokens.
        device: device of the result.

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


class _TakeOnce(torch.autograd.Function):
    """Rows of a matrix, each at most once, so that the gradient is a copy and not a slow sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, gradient.shape[1]).index_copy(0, index, gradient), None
