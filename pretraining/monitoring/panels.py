"""Pictures of reconstructions: input, corrupted input, reconstruction and error, in slices along three axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write

COLUMNS = ("input", "corrupted", "reconstruction", "filled in", "error")
PLANES = ("z", "y", "x")
# Of the pictures, in the folder of a run.
PANELS_FOLDER = "panels"


class ReconstructedView(NamedTuple):
    """What is drawn of a view of a crop, each (z, y, x).

    Attributes:
        target: what the network should reconstruct.
        corrupted: what it saw.
        reconstruction: its output.
        mask: True where voxels were cut out.
        inside: True where the view shows the volume, False where it shows padding.
    """

    target: Tensor
    corrupted: Tensor
    reconstruction: Tensor
    mask: Tensor
    inside: Tensor


def draw_reconstruction(path: Path, panels: Mapping[str, ReconstructedView], title: str = "") -> Path:
    """Draws three rows per modality: along each axis, the slice in which most tissue was cut out.

    "Filled in" is the input with its masked region replaced by the reconstruction; the mask is outlined in "corrupted"
    and "error". The last column's title shows the L1 error in the masked region and that of filling in the mean, both
    without padding.

    Args:
        path: the PNG to write.
        panels: one of each modality.
        title: title of the picture.
    """
    figure = Figure(figsize=(2.2 * len(COLUMNS), 2.3 * len(PLANES) * len(panels)), layout="constrained")
    axes = figure.subplots(len(PLANES) * len(panels), len(COLUMNS), squeeze=False)
    figure.suptitle(title)
    for block, (name, tensors) in enumerate(panels.items()):
        target, corrupted, reconstruction, mask, inside = (t.detach().float().cpu().numpy() for t in tensors)
        low, high = np.percentile(target, [1, 99])
        filled = np.where(mask > 0, reconstruction, target)
        error = np.abs(reconstruction - target)
        for plane, plane_name in enumerate(PLANES):
            row = axes[block * len(PLANES) + plane]
            index = busiest_slice(target, mask, plane)
            *cuts, outline = (
                _upright(volume.take(index, axis=plane), plane)
                for volume in (target, corrupted, reconstruction, filled, error, mask)
            )
            for axis, cut, column in zip(row, cuts, COLUMNS, strict=True):
                if column == "error":
                    axis.imshow(cut, cmap="magma", vmin=0, vmax=max(high - low, 1e-6))
                else:
                    axis.imshow(cut, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
                if column in ("corrupted", "error") and 0 < outline.mean() < 1:
                    axis.contour(outline, levels=[0.5], colors="white", linewidths=0.5)
                axis.set_xticks([])
                axis.set_yticks([])
                if block == plane == 0:
                    axis.set_title(column, fontsize=9)
            row[0].set_ylabel(f"{name}, {plane_name} = {index}", fontsize=9)
        axes[block * len(PLANES), -1].set_title(_errors(target, error, mask > 0, inside > 0), fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=70)
    return path


def busiest_slice(target: np.ndarray, mask: np.ndarray, axis: int) -> int:
    """Index of the slice whose masked region varies most in intensity; the middle slice if none varies."""
    others = tuple(a for a in range(3) if a != axis)
    hidden = mask > 0
    count = hidden.sum(others)
    mean = (target * hidden).sum(others) / np.maximum(count, 1)
    spread = ((target - np.expand_dims(mean, others)) ** 2 * hidden).sum(others)
    return int(spread.argmax()) if spread.max() > 0 else target.shape[axis] // 2


def _errors(target: np.ndarray, error: np.ndarray, mask: np.ndarray, inside: np.ndarray) -> str:
    hidden, visible = mask & inside, ~mask & inside
    if not hidden.any() or not visible.any():
        return "error"
    mean_error = np.abs(target[hidden] - target[visible].mean()).mean()
    return f"error: {error[hidden].mean():.2f}\n(of the mean: {mean_error:.2f})"


def _upright(cut: np.ndarray, plane: int) -> np.ndarray:
    """Flips slices along y and x, so that the head is at the top."""
    return np.flip(cut, 0) if plane else cut
