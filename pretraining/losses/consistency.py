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
    if first.shape != second.shape or first.ndim != 5:
        raise ValueError(
            f"maps must be (B, C, z, y, x) and alike, found {tuple(first.shape)} and {tuple(second.shape)}"
        )
    with torch.autocast(first.device.type, enabled=False):
        precise = torch.float64 if first.dtype == torch.float64 else torch.float32
        difference = undo_turns(first.to(precise), first_turns) - undo_turns(second.to(precise), second_turns)
        squares = difference.square()
        if inside is not None:
            shares = F.adaptive_avg_pool3d(inside.to(precise), squares.shape[2:])
            # Relative to their mean: without padding all are exactly 1.
            mean = shares.sum((1, 2, 3, 4), keepdim=True) / shares[0].numel()
            squares = squares * (shares / mean.clamp_min(torch.finfo(precise).tiny))
        return squares.mean((1, 2, 3, 4))
