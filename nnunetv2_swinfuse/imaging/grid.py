"""The voxel grid of a volume, from its header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_swinfuse.errors import InputError

# Largest difference of origin and spacing (mm) or direction on the same grid: file formats round them differently.
TOLERANCE = 1e-3
# Of a path that :func:`is_utf8` denies: what was found, and what to do.
NOT_UTF8 = "its name or a folder's has bytes that are not UTF-8, which ITK cannot open", "rename it in ASCII or UTF-8"


@dataclass(frozen=True)
class Grid:
    """Size, spacing, origin (x, y, z) and direction of a volume, as its header says."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def differs_from(self, other: Grid, spacing_tolerance: float = TOLERANCE) -> str | None:
        """Describes the first property that differs; None for equal grids.

        Args:
            other: the grid to compare with.
            spacing_tolerance: largest difference of the spacings in mm, beside the relative one of `numpy.allclose`.
        """
        if self.size != other.size:
            return f"size {self.size} and {other.size}"
        for name in ("spacing", "origin", "direction"):
            first, second = getattr(self, name), getattr(other, name)
            if not np.allclose(first, second, atol=spacing_tolerance if name == "spacing" else TOLERANCE):
                return f"{name} {np.round(first, 6).tolist()} and {np.round(second, 6).tolist()}"
        return None


@dataclass(frozen=True)
class HeaderProblem:
    """What the header of an intact file leaves open, or says twice, so that two programs can read it differently.

    Attributes:
        reason: what was found.
        remedy: what to do.
        geometry: whether orientation or voxel size is in doubt; otherwise the intensities are.
    """

    reason: str
    remedy: str
    geometry: bool = True


def read_grid(path: Path) -> Grid:
    """Reads the header of a volume.

    Raises:
        InputError: naming the file, when its path is not UTF-8, or when it is unreadable, not 3D, or empty.
    """
    if not is_utf8(path):
        raise InputError(f"{path}: {'; '.join(NOT_UTF8)}")
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


def is_utf8(path: Path) -> bool:
    """Whether ITK can open a path. One whose bytes are not UTF-8 makes SimpleITK abort the whole process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def itk_reason(error: RuntimeError) -> str:
    """The message of an ITK exception without its source files and line numbers."""
    reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
    # MetaImage's reader says this of files that exist but end early.
    return "its data end early or are damaged" if not reason or "No such file" in reason else reason
