"""Checks the headers of all volumes before any long work, and reports all problems together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.errors import InputError

# Largest difference of origin and spacing (mm) or direction on the same grid: file formats round them differently.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Grid:
    """Size, spacing, origin (x, y, z) and direction of a volume, as its header says."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def differs_from(self, other: Grid) -> str | None:
        """Describes the first property that differs; None for equal grids."""
        if self.size != other.size:
            return f"size {self.size} and {other.size}"
        for name in ("spacing", "origin", "direction"):
            first, second = getattr(self, name), getattr(other, name)
            if not np.allclose(first, second, atol=TOLERANCE):
                return f"{name} {np.round(first, 4).tolist()} and {np.round(second, 4).tolist()}"
        return None


def read_grid(path: Path) -> Grid:
    """Reads the header of a volume.

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
    """The message of an ITK exception without its source files and line numbers."""
    reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
    # MetaImage's reader says this of files that exist but end early.
    return "its data end early or are damaged" if not reason or "No such file" in reason else reason


def check(collection: Collection, processes: int = 2) -> dict[Path, Grid]:
    """Reads every header and reports all problems in one error.

    Returns:
        The grid of each file.

    Raises:
        InputError: listing unreadable, 4D or empty volumes and masks, and pairs or masks on different grids.
    """
    problems: list[str] = []
    grids: dict[Path, Grid] = {}

    def read(path: Path) -> Grid | InputError:
        try:
            return read_grid(path)
        except InputError as error:
            return error

    # A mask may belong to several volumes.
    paths = list(dict.fromkeys(file for volume in collection.volumes for file in volume.files))
    with ThreadPoolExecutor(processes) as pool:
        for path, result in zip(paths, tqdm(pool.map(read, paths), "checking headers", len(paths)), strict=True):
            if isinstance(result, Grid):
                grids[path] = result
            else:
                problems.append(str(result))
    problems += [problem for patient in collection.patients if (problem := _pair_problem(patient, grids))]
    problems += [problem for volume in collection.volumes for problem in _mask_problems(volume, grids)]
    if problems:
        listing = "\n  ".join(problems)
        raise InputError(f"collection {collection.name}: {len(problems)} problem(s), nothing was changed:\n  {listing}")
    return grids


def _pair_problem(patient: Patient, grids: dict[Path, Grid]) -> str | None:
    if not patient.paired or any(volume.path not in grids for volume in patient.volumes):
        return None
    first, second = patient.volumes
    difference = grids[first.path].differs_from(grids[second.path])
    if difference is None:
        return None
    return (
        f"{first.path} and {second.path}: CT and MR of patient {patient.identifier} should be registered, but are "
        f"on different grids ({difference}); resample one to the other, or declare them unpaired with --unpaired"
    )


def _mask_problems(volume: Volume, grids: dict[Path, Grid]) -> list[str]:
    image, *masks = volume.files
    return [
        f"{image} and {mask}: different grids ({difference}); resample or remove the mask"
        for mask in masks
        if image in grids and mask in grids and (difference := grids[image].differs_from(grids[mask]))
    ]
