"""Volumes of the labels in a mask, and a picture of it over its image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


def label_volumes(mask: Path, labels: Mapping[str, Any]) -> dict[str, float]:
    """Millilitres of every label or region, by its name.

    Args:
        mask: the file.
        labels: as in dataset.json: a value, or for a region several, by name.
    """
    image = sitk.ReadImage(str(mask))
    millilitres = float(np.prod(image.GetSpacing())) / 1000
    counts = np.bincount(sitk.GetArrayFromImage(image).ravel())
    volumes = {}
    for name, values in labels.items():
        if name not in ("background", "ignore"):
            parts = values if isinstance(values, list) else [values]
            volumes[name] = round(millilitres * sum(int(counts[v]) for v in parts if v < len(counts)), 3)
    return volumes


def write_overlay(image: Path, mask: Path, target: Path) -> None:
    """A picture of the three slices with the largest share of mask, its outline over the image.

    Args:
        image: the first channel.
        mask: on the same grid.
        target: the PNG.
    """
    from matplotlib.figure import Figure

    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(image))).astype(np.float32)
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))
    spacing = sitk.ReadImage(str(mask)).GetSpacing()[::-1]
    low, high = np.percentile(voxels, (1, 99))
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axis, (plot, name) in enumerate(zip(figure.subplots(1, 3), ("z", "y", "x"), strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        shares = (values > 0).sum(axis=others)
        number = int(shares.argmax()) if shares.any() else voxels.shape[axis] // 2
        picture, outline = voxels.take(number, axis), values.take(number, axis)
        aspect = spacing[others[0]] / spacing[others[1]]
        plot.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
        for label in np.unique(outline[outline > 0]):
            plot.contour(outline == label, levels=[0.5], colors=[f"C{int(label) % 10}"], linewidths=1)
        plot.set_title(f"{name} = {number}")
        plot.axis("off")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=100)
