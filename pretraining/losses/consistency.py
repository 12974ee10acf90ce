"""Features of two views of the same anatomy should agree where they show the same place.

:func:`consistency` is the invariance term of VICReg (Bardes et al., arXiv 2105.04906, equation 4), token by token as in
VICRegL (arXiv 2210.01571). With a detached second view it distils that view into the first.
:func:`intraclass_correlation` is the same relative to the variance of the features: that of features standardised over
the batch, which Barlow Twins compares (Zbontar et al., arXiv 2103.03230). It does not improve when features shrink.
:func:`adjusted_correlation` is this project's own: relative to other crops at the same place, so that it does not
improve either when features say nothing but where in the crop they are.

None has negatives as a softmax has, so the batch can be small; the variance and covariance terms
(:mod:`pretraining.losses.vicreg`) keep features from becoming all alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A channel is constant but for rounding if its variance is not well above this, relative to its mean square.
EPSILON = 1e-7


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
        inside: which voxels of the crops, not turned, are compared, bool (B, 1, Z, Y, X); padding is not. A token
            counts by its share of them. None: all.

    Returns:
        One value per crop (B,), in float32 or better; 0 for a crop of which nothing is compared.

    Raises:
        ValueError: when the maps differ in shape.
    """
    with torch.autocast(first.device.type, enabled=False):
        own, other = _same_places(first, second, first_turns, second_turns)
        squares = (own - other).square()
        if inside is not None:
            squares = squares * _weights(inside, squares)
        return squares.mean((1, 2, 3, 4))


def view_moments(
    first: Tensor, second: Tensor, first_turns: Tensor, second_turns: Tensor, inside: Tensor | None = None
) -> Tensor:
    """Sums over the features of two views, from which :func:`intraclass_correlation` follows.

    Args:
        first, second, first_turns, second_turns, inside: as for :func:`consistency`.

    Returns:
        (B, 1 + 3C) for each crop: the number of its tokens, each counting by its share inside; then by channel the sums
        of the squared differences, of the mean squares of both views, and of their means. In float32 or better.

    Raises:
        ValueError: when the maps differ in shape.
    """
    with torch.autocast(first.device.type, enabled=False):
        own, other = _same_places(first, second, first_turns, second_turns)
        shares = _shares(inside, own)
        values = [(own - other).square(), (own.square() + other.square()) / 2, (own + other) / 2]
        return torch.cat([(shares * value).sum((2, 3, 4)) for value in (torch.ones_like(shares), *values)], 1)


def intraclass_correlation(moments: Tensor) -> Tensor:
    """How much more alike features are at the same place of two views than at different places and crops.

    Of each channel one minus the mean squared difference of the two views relative to twice the unbiased variance of
    both: the intraclass correlation (ICC) of Fisher; then the mean over the channels. 1 for equal views; about 0 for
    independent ones, however small their difference is, and for a single place; below 0 for views whose means differ,
    -1 at least. Unlike :func:`consistency`, it does not improve when all features shrink towards a constant; in float32
    this holds down to a deviation of about 0.003 of the features' size.

    Args:
        moments: of the crops (B, 1 + 3C), from :func:`view_moments`.

    Returns:
        A scalar; a channel that does not vary counts as 0.
    """
    count, *sums = moments.sum(0).split([1, *[(moments.shape[1] - 1) // 3] * 3])
    difference, square, mean = (values / _divisor(count) for values in sums)
    # Of n places there are 2n features. Parts of one place count as a whole one.
    features = 2 * count.clamp_min(1)
    twice_variance = 2 * (square - mean.square()).clamp_min(0) * features / (features - 1)
    floor = EPSILON * (square.detach() + EPSILON)
    return ((twice_variance - difference) / (twice_variance + floor)).mean()


def place_moments(
    first: Tensor, second: Tensor, first_turns: Tensor, second_turns: Tensor, inside: Tensor | None = None
) -> Tensor:
    """Sums over the features of two views, from which :func:`adjusted_correlation` follows.

    Args:
        first, second, first_turns, second_turns, inside: as for :func:`consistency`.

    Returns:
        (B, 2 + 3C) for each crop: the number of its places, and that of pairs with the second view of another crop of
        this batch at the same place, each counting by the shares inside; then by channel the sums of the squared
        differences of both views, of those of the pairs, and of the mean squares. In float32 or better.

    Raises:
        ValueError: when the maps differ in shape.
    """
    with torch.autocast(first.device.type, enabled=False):
        own, other = _same_places(first, second, first_turns, second_turns)
        shares = _shares(inside, own)
        squares = (own.square() + other.square()) / 2
        # Differences of large and nearly equal numbers would be lost in rounding.
        centre = ((own + other) / 2).mean((0, 2, 3, 4), keepdim=True).detach()
        own, other = own - centre, other - centre
        # Over all crops but this one: the pairs' squared differences, multiplied out.
        counts, sums, sums_of_squares = (
            (shares * value).sum(0, keepdim=True) - shares * value
            for value in (torch.ones_like(shares), other, other.square())
        )
        pairs = (own.square() * counts - 2 * own * sums + sums_of_squares).clamp_min(0)
        values = [torch.ones_like(shares), counts, (own - other).square(), pairs, squares]
        return torch.cat([(shares * value).sum((2, 3, 4)) for value in values], 1)


def adjusted_correlation(moments: Tensor, chosen: Tensor) -> Tensor:
    """How much more alike features are at the same place of two views of a crop than at the same place of two crops.

    Of each channel one minus the mean squared difference of the two views relative to that of different crops: an
    intraclass correlation adjusted for the place. 1 for equal views of crops that differ; about 0 for features that
    are independent, or that say only where in the crop they are, which :func:`intraclass_correlation` counts as
    agreement.

    Args:
        moments: of the crops (B, 2 + 3C), from :func:`place_moments`.
        chosen: (B,), the crops whose views are compared, 1 or 0; all of them are other crops to each other.

    Returns:
        A scalar, the mean over the channels; a channel in which crops do not differ, or a batch in which no place can
        be compared between crops, counts as 0.
    """
    channels = (moments.shape[1] - 2) // 3
    count, pairs, same, across, squares = moments.split([1, 1, channels, channels, channels], 1)
    weights = chosen[:, None]
    same, square = ((weights * value).sum(0) / _divisor((weights * count).sum()) for value in (same, squares))
    across = across.sum(0) / _divisor(pairs.sum())
    floor = EPSILON * (square.detach() + EPSILON)
    compared = (across > floor) & ((weights * count).sum() > 0)
    return torch.where(compared, (across - same) / torch.where(compared, across, 1), 0).mean()


def _divisor(count: Tensor) -> Tensor:
    """A count to divide sums by, 1 in place of 0: of nothing, all sums are 0, and their gradients stay finite."""
    return torch.where(count > 0, count, 1)


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
    shares = _shares(inside, maps)
    mean = shares.sum((1, 2, 3, 4), keepdim=True) / shares[0].numel()
    return shares / mean.clamp_min(torch.finfo(maps.dtype).tiny)


def _shares(inside: Tensor | None, maps: Tensor) -> Tensor:
    """The share of each token's voxels that is inside, (B, 1, z, y, x); 1 for None."""
    if inside is None:
        return torch.ones_like(maps[:, :1])
    return F.adaptive_avg_pool3d(inside.to(maps.dtype), maps.shape[2:])
