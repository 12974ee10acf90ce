"""Volumes of the labels in a mask, and whether it is empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


@dataclass(frozen=True)
class MaskSummary:
    """What a mask contains.

    Attributes:
        volumes_ml: millilitres of every label or region, by its name, to six digits.
        empty: whether no voxel has one of these labels.
    """

    volumes_ml: dict[str, float]
    empty: bool


def summarise_mask(mask: Path, labels: Mapping[str, Any]) -> MaskSummary:
    """Counts the voxels of every label or region, except those of `background` and `ignore`.

    Args:
        mask: the file.
        labels: as in dataset.json: a value, or for a region several, by name.

    Raises:
        RuntimeError: when ITK cannot read the file.
    """
    image = sitk.ReadImage(str(mask))
    millilitres = float(np.prod(image.GetSpacing())) / 1000
    counts = np.bincount(sitk.GetArrayFromImage(image).ravel())
    voxels = {}
    for name, values in labels.items():
        if name not in ("background", "ignore"):
            parts = values if isinstance(values, list) else [values]
            voxels[name] = sum(int(counts[value]) for value in parts if value < len(counts))
    # Rounded to digits, not to decimals, so that no structure of a small animal or of the ear becomes 0 ml.
    volumes = {name: float(f"{count * millilitres:.6g}") for name, count in voxels.items()}
    return MaskSummary(volumes, not any(voxels.values()))
