"""Pictures of what a run reconstructs: input, corrupted input, reconstruction and error, along three axes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

COLUMNS = ("input", "corrupted", "reconstruction", "filled in", "error")
PLANES = ("z", "y", "x")


def draw_reconstruction(path: Path, panels: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]], title: str = "") -> Path:
    """Draws one block of rows per modality: along each axis the slice in which most tissue was cut out.

    Args:
        path: the PNG to write.
        panels: per modality target, corrupted, reconstruction and mask, each (z, y, x).
        title: a line above.

    "Filled in" is the input with its masked region replaced by the reconstruction; the mask is outlined in "corrupted"
    and "error". Beside each modality stand its L1 error in the masked region and that of the visible mean.
    """
    figure = Figure(figsize=(2.2 * len(COLUMNS), 2.3 * len(PLANES) * len(panels)), layout="constrained")
    axes = figure.subplots(len(PLANES) * len(panels), len(COLUMNS), squeeze=False)
    figure.suptitle(title)
    for block, (name, tensors) in enumerate(panels.items()):
        target, corrupted, reconstruction, mask = (t.detach().float().cpu().numpy() for t in tensors)
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
        axes[block * len(PLANES), -1].set_title(_errors(target, error, mask), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=70)
    os.replace(temporary, path)
    return path


def busiest_slice(target: np.ndarray, mask: np.ndarray, axis: int) -> int:
    """The slice along an axis in whose masked region intensities vary most; the middle one where nothing does."""
    others = tuple(a for a in range(3) if a != axis)
    hidden = mask > 0
    count = hidden.sum(others)
    mean = (target * hidden).sum(others) / np.maximum(count, 1)
    spread = ((target - np.expand_dims(mean, others)) ** 2 * hidden).sum(others)
    return int(spread.argmax()) if spread.max() > 0 else target.shape[axis] // 2


def _errors(target: np.ndarray, error: np.ndarray, mask: np.ndarray) -> str:
    hidden = mask > 0
    if hidden.all() or not hidden.any():
        return "error"
    of_mean = np.abs(target[hidden] - target[~hidden].mean()).mean()
    return f"error: {error[hidden].mean():.2f}\n(of the mean: {of_mean:.2f})"


def _upright(cut: np.ndarray, plane: int) -> np.ndarray:
    """Rows of slices along y and x run along z, which points to the head."""
    return np.flip(cut, 0) if plane else cut
