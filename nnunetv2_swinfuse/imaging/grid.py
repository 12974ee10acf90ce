"""Where a volume lies, as its header says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_swinfuse.errors import InputError

# Largest difference of origin, spacing (mm) or direction between volumes of one grid: files round them differently.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Grid:
    """Size, spacing, origin (x, y, z) and direction of a volume, as its header says."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def differs_from(self, other: Grid) -> str | None:
        """The first property that differs, in words."""
        if self.size != other.size:
            return f"size {self.size} and {other.size}"
        for name in ("spacing", "origin", "direction"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if not np.allclose(ours, theirs, atol=TOLERANCE):
                return f"{name} {np.round(ours, 4).tolist()} and {np.round(theirs, 4).tolist()}"
        return None


def read_grid(path: Path) -> Grid:
    """Reads a header only.

    Raises:
        InputError: naming the file, when it is unreadable, not 3D, or empty.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read ({itk_reason(error)}); replace or remove it") from error
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise InputError(
            f"{path}: {reader.GetDimension()}D with {reader.GetNumberOfComponents()} component(s) of size "
            f"{reader.GetSize()}; expected one 3D volume. Split it into one file per volume"
        )
    if min(reader.GetSize()) < 2:
        raise InputError(f"{path}: size {reader.GetSize()}; expected at least 2 voxels along each axis")
    return Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def itk_reason(error: RuntimeError) -> str:
    """What ITK's exception says, without its source files and line numbers."""
    reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
    # MetaImage's reader gives this for files that are there but end early.
    return "its data end early or are damaged" if not reason or "No such file" in reason else reason
