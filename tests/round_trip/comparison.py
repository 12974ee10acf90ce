"""Masks of two programs, voxel by voxel, and against the reference, so that empty ones are not taken for agreement."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk


@dataclass
class Agreement:
    """What was found for the held-out cases of a dataset.

    Attributes:
        cases: how many had a mask of every program.
        voxels: in all masks of one program.
        foreground: of these, how many are not background.
        different: by program, voxels that differ from those of the first program.
        grids: by program, masks whose size, spacing, origin or direction differ.
        bytes: by program, masks whose files are not the same byte for byte.
        dice: mean over cases and labels of the first program's masks, labels that are in neither mask left out.
    """

    cases: int = 0
    voxels: int = 0
    foreground: int = 0
    different: dict[str, int] = field(default_factory=dict)
    grids: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    dice: float = float("nan")

    @property
    def identical(self) -> bool:
        """Whether all programs made the same masks, which hold something."""
        return self.cases > 0 and self.foreground > 0 and not any((*self.different.values(), *self.grids.values()))


def compare(masks: dict[str, Path], references: Path, cases: list[str], ending: str) -> Agreement:
    """Compares the masks of all programs with those of the first.

    Args:
        masks: folder of the masks, by program.
        references: folder of the reference segmentations.
        cases: names, without ending.
        ending: of all these files.

    Raises:
        FileNotFoundError: when a program has made no mask of a case.
    """
    first, *others = masks
    found = Agreement(
        different=dict.fromkeys(others, 0), grids=dict.fromkeys(others, 0), bytes=dict.fromkeys(others, 0)
    )
    scores = []
    for case in cases:
        file = f"{case}{ending}"
        voxels, grid = _read(masks[first] / file)
        for program in others:
            theirs, their_grid = _read(masks[program] / file)
            found.grids[program] += grid != their_grid
            found.different[program] += int((voxels != theirs).sum()) if voxels.shape == theirs.shape else voxels.size
            found.bytes[program] += (masks[first] / file).read_bytes() != (masks[program] / file).read_bytes()
        found.cases += 1
        found.voxels += voxels.size
        found.foreground += int((voxels > 0).sum())
        reference, _ = _read(references / file)
        scores += [dice(voxels == label, reference == label) for label in np.union1d(voxels, reference) if label > 0]
    found.dice = float(np.mean(scores))
    return found


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice coefficient of two masks of which at least one is not empty."""
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def _read(path: Path) -> tuple[np.ndarray, tuple[object, ...]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no mask was made")
    image = sitk.ReadImage(str(path))
    grid = (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return sitk.GetArrayFromImage(image), grid
