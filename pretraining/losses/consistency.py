"""Features of two views of the same anatomy should agree where they show the same place.

The invariance term of VICReg (Bardes et al., arXiv 2105.04906, equation 4), token by token as in VICRegL (arXiv
2210.01571). It has no negatives, so it does not depend on the batch size; the variance and covariance terms
(:mod:`pretraining.losses.vicreg`) keep features from becoming all alike. With a detached second view it distils that
view into the first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def undo_turns(maps: Tensor, turns: Tensor) -> Tensor:
    """Turns maps (B, C, z, y, x) back by the quarter turns of their crops, (B,) on the CPU."""
    return torch.stack([torch.rot90(m, -int(turn), dims=(2, 3)) for m, turn in zip(maps, turns, strict=True)])


def consistency(
    first: Tensor, second: Tensor, first_turns: Tensor, second_turns: Tensor, inside: Tensor | None = None
) -> Tensor:
    """Mean squared difference of the features at the same place of two views.

    Args:
        first, second: feature maps (B, C, z, y, x) of both views, with channels of a comparable scale.
        first_turns, second_turns: quarter turns of the views in the (y, x) plane, int64 (B,), on the CPU.
        inside: which voxels of the crops, not turned, are no padding, bool (B, 1, Z, Y, X). A token counts by its share
            of them, so that padding does not. None: no padding.

    Returns:
        One value per crop (B,), in float32 or better; 0 for a crop that is all padding.

    Raises:
        ValueError: when the maps differ in shape.
    """
    with torch.autocast(first.device.type, enabled=False):
        own, other = _same_places(first, second, first_turns, second_turns)
        squares = (own - other).square()
        if inside is not None:
            squares = squares * _weights(inside, squares)
        return squares.mean((1, 2, 3, 4))


@torch.no_grad()
def view_moments(
    first: Tensor, second: Tensor, first_turns: Tensor, second_turns: Tensor, inside: Tensor | None = None
) -> Tensor:
    """Moments of the features of two views, from which :func:`intraclass_correlation` follows.

    Args:
        first, second, first_turns, second_turns, inside: as for :func:`consistency`.

    Returns:
        (B, 3 + C) for each crop: 1, or 0 if it is all padding; the mean squared difference; the mean square; the mean
        of each channel. Means are over both views and all places.
    """
    with torch.autocast(first.device.type, enabled=False):
        own, other = _same_places(first, second, first_turns, second_turns)
        weights = torch.ones_like(own[:, :1]) if inside is None else _weights(inside, own)
        values = ((own - other).square().mean(1), (own.square() + other.square()).mean(1) / 2)
        counted = weights.flatten(1).any(1, keepdim=True).to(own.dtype)
        squares = [(weights[:, 0] * value).mean((1, 2, 3))[:, None] for value in values]
        return torch.cat([counted, *squares, (weights * (own + other) / 2).mean((2, 3, 4))], 1)


def intraclass_correlation(moments: Tensor) -> Tensor:
    """How much more alike features are at the same place of two views than at different places and crops.

    One minus the mean squared difference of the two views relative to twice the variance of all features, the mean over
    channels: the intraclass correlation (ICC) of Fisher. 1 for equal views; 0 for independent ones, however small
    their difference is; below 0 for views whose means differ. Unlike :func:`consistency`, it does not improve when all
    features shrink towards a constant.

    Args:
        moments: of the crops (B, 3 + C), from :func:`view_moments`.

    Returns:
        A scalar; 0 where features do not vary.
    """
    sums = moments.sum(0)
    difference, square, *_ = means = sums[1:] / sums[0].clamp_min(1)
    variance = square - means[2:].square().mean()
    tiny = torch.finfo(moments.dtype).eps * square
    return torch.where(variance > tiny, 1 - difference / (2 * variance).clamp_min(tiny), torch.zeros_like(variance))


def _same_places(first: Tensor, second: Tensor, first_turns: Tensor, second_turns: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps without their turns, in float32 or better."""
    if first.shape != second.shape or first.ndim != 5:
        raise ValueError(
            f"maps must be (B, C, z, y, x) and alike, found {tuple(first.shape)} and {tuple(second.shape)}"
        )
    precise = torch.float64 if first.dtype == torch.float64 else torch.float32
    return undo_turns(first.to(precise), first_turns), undo_turns(second.to(precise), second_turns)


def _weights(inside: Tensor, maps: Tensor) -> Tensor:
    """Each token's share inside the volume relative to the mean share, (B, 1, z, y, x); exactly 1 without padding."""
    shares = F.adaptive_avg_pool3d(inside.to(maps.dtype), maps.shape[2:])
    mean = shares.sum((1, 2, 3, 4), keepdim=True) / shares[0].numel()
    return shares / mean.clamp_min(torch.finfo(maps.dtype).tiny)
