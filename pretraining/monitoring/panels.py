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
    """Draws one block of rows per modality.

    Args:
        path: the PNG to write.
        panels: per modality target, corrupted, reconstruction and mask, each (z, y, x).
        title: a line above.

    "Filled in" is the input with its masked region replaced by the reconstruction; the mask is outlined in "error".
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
            cuts = [np.flip(volume.take(volume.shape[plane] // 2, axis=plane), 0) if plane else
                    volume.take(volume.shape[plane] // 2, axis=plane)
                    for volume in (target, corrupted, reconstruction, filled, error)]  # fmt: skip
            outline = mask.take(mask.shape[plane] // 2, axis=plane)
            outline = np.flip(outline, 0) if plane else outline
            for axis, cut, column in zip(row, cuts, COLUMNS, strict=True):
                if column == "error":
                    axis.imshow(cut, cmap="magma", vmin=0, vmax=max(high - low, 1e-6))
                    if 0 < outline.mean() < 1:
                        axis.contour(outline, levels=[0.5], colors="white", linewidths=0.5)
                else:
                    axis.imshow(cut, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
                axis.set_xticks([])
                axis.set_yticks([])
                if block == plane == 0:
                    axis.set_title(column, fontsize=9)
            row[0].set_ylabel(f"{name}, slice along {plane_name}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=70)
    os.replace(temporary, path)
    return path
