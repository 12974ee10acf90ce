"""Features of two views of the same anatomy should agree where they show the same place.

The invariance term of VICReg (Bardes et al., arXiv 2105.04906, equation 4), token by token as in VICRegL (arXiv
2210.01571). It has no negatives, so it does not depend on the batch size; the variance and covariance terms
(:mod:`pretraining.losses.vicreg`) keep features from becoming all alike. With a detached second view it distils that
view into the first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def undo_turns(maps: Tensor, turns: Tensor) -> Tensor:
    """Turns maps (B, C, z, y, x) back by the quarter turns of their crops, (B,) on the CPU."""
    return torch.stack([torch.rot90(m, -int(turn), dims=(2, 3)) for m, turn in zip(maps, turns, strict=True)])


def consistency(first: Tensor, second: Tensor, first_turns: Tensor, second_turns: Tensor) -> Tensor:
    """Mean squared difference of the features at the same place of two views.

    Args:
        first, second: feature maps (B, C, z, y, x) of both views, with channels of a comparable scale.
        first_turns, second_turns: quarter turns of the views in the (y, x) plane, int64 (B,), on the CPU.

    Returns:
        One value per crop (B,), in float32 or better.

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
        return difference.square().mean((1, 2, 3, 4))
