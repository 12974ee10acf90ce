"""Inpainting loss: L1 (SwinFUSE, arXiv 2405.12781), averaged separately over cut-out and visible voxels."""

from __future__ import annotations

import torch
from torch import Tensor


def error_sums(reconstruction: Tensor, target: Tensor, mask: Tensor, inside: Tensor | None = None) -> Tensor:
    """Sum of absolute errors over the cut-out voxels, their number, and the same for the visible voxels: (4,).

    Padding counts as neither: it is constant, and easy to reconstruct. Unlike means, the sums of the parts of a batch
    add up to those of the whole batch.

    Args:
        reconstruction, target: voxels (B, 1, z, y, x), normalised intensities.
        mask: True where voxels were cut out, of the same shape; either part may be empty.
        inside: True for voxels of the volume, False for padding, of the same shape; None: no padding.

    Returns:
        Four values in float32 or better.

    Raises:
        ValueError: when the shapes differ.
    """
    if inside is None:
        inside = torch.ones_like(mask)
    if not reconstruction.shape == target.shape == mask.shape == inside.shape:
        raise ValueError(
            f"reconstruction, target, mask and inside must have one shape, found {tuple(reconstruction.shape)}, "
            f"{tuple(target.shape)}, {tuple(mask.shape)} and {tuple(inside.shape)}"
        )
    with torch.autocast(reconstruction.device.type, enabled=False):
        precise = torch.float64 if reconstruction.dtype == torch.float64 else torch.float32
        error = (reconstruction.to(precise) - target.to(precise)).abs()
        cut_out, visible = (mask & inside).to(precise), (~mask & inside).to(precise)
        return torch.stack([(error * cut_out).sum(), cut_out.sum(), (error * visible).sum(), visible.sum()])


def visible_mean(voxels: Tensor, hidden: Tensor) -> Tensor:
    """Mean of each crop over the voxels that are not hidden, (B, 1, 1, 1, 1); 0 where all are.

    Args:
        voxels: (B, 1, z, y, x).
        hidden: True where voxels were cut out or are padding, of the same shape.
    """
    visible = (~hidden).to(voxels)
    count = visible.sum((1, 2, 3, 4), keepdim=True).clamp_min(1)
    return (voxels * visible).sum((1, 2, 3, 4), keepdim=True) / count


def loss_from_sums(sums: Tensor, visible_weight: float) -> Tensor:
    """Mean absolute error over the cut-out voxels, plus a weight times that over the visible voxels.

    The released code averages over the whole crop, so that copying visible voxels dominates the loss: with 30 % cut
    out this equals a weight of 2.3. docs/method.md has measurements with lower weights.

    Args:
        sums: what :func:`error_sums` returns.
        visible_weight: weight of the mean error over visible voxels.
    """
    masked, visible = sums[0] / sums[1].clamp_min(1), sums[2] / sums[3].clamp_min(1)
    return masked + visible_weight * visible
