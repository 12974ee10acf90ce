"""Reconstruction of what was cut out: an L1 loss (SwinFUSE, arXiv 2405.12781) that looks where the cut-outs are."""

from __future__ import annotations

import torch
from torch import Tensor


def error_sums(reconstruction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of absolute errors over cut-out voxels, their number, and the same two of the visible ones: (4,).

    Sums of several parts of a batch add up to those of the batch; means do not.

    Args:
        reconstruction, target: voxels (B, 1, z, y, x), normalised intensities.
        mask: True where voxels were cut out, of the same shape; either part may be empty.

    Returns:
        Four values in float32 or better.

    Raises:
        ValueError: when the shapes differ.
    """
    if not reconstruction.shape == target.shape == mask.shape:
        raise ValueError(
            f"reconstruction, target and mask must have one shape, found {tuple(reconstruction.shape)}, "
            f"{tuple(target.shape)} and {tuple(mask.shape)}"
        )
    with torch.autocast(reconstruction.device.type, enabled=False):
        precise = torch.float64 if reconstruction.dtype == torch.float64 else torch.float32
        error = (reconstruction.to(precise) - target.to(precise)).abs()
        cut_out = mask.to(precise)
        visible = 1 - cut_out
        return torch.stack([(error * cut_out).sum(), cut_out.sum(), (error * visible).sum(), visible.sum()])


def loss_of_sums(sums: Tensor, visible_weight: float) -> Tensor:
    """Mean absolute error over the cut-out voxels, plus that over the visible ones times a weight.

    The released code averages over the whole crop, so that copying what is visible dominates the loss: a weight of 2.3
    where 30 % are cut out. docs/method.md has what a lower one does.

    Args:
        sums: what :func:`error_sums` returns.
        visible_weight: weight of the mean error over visible voxels.
    """
    masked, visible = sums[0] / sums[1].clamp_min(1), sums[2] / sums[3].clamp_min(1)
    return masked + visible_weight * visible
