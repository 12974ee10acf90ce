"""Checks the headers of all volumes before any long work, and reports all problems together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import Grid, read_grid
from nnunetv2_swinfuse.imaging.orientation import reoriented
from pretraining.collections.collection import ORIENTATION, Collection, Patient, Volume


def check(collection: Collection, processes: int = 2) -> dict[Path, Grid]:
    """Reads every header and reports all problems in one error.

    Returns:
        The grid of each file, with its axes in the order of ORIENTATION, as preprocessing will read it.

    Raises:
        InputError: listing unreadable, 4D or empty volumes and masks, and pairs or masks on different grids.
    """
    problems: list[str] = []
    grids: dict[Path, Grid] = {}

    def read(path: Path) -> Grid | InputError:
        try:
            return reoriented(read_grid(path), ORIENTATION)
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
        f"{first.path} and {second.path}: CT and MR of patient {patient.identifier} should be registered, but are on "
        f"different grids ({difference}, axes in {ORIENTATION} order); resample one to the other, or declare them "
        "unpaired with --unpaired"
    )


def _mask_problems(volume: Volume, grids: dict[Path, Grid]) -> list[str]:
    image, *masks = volume.files
    return [
        f"{image} and {mask}: different grids ({difference}, axes in {ORIENTATION} order); resample or remove the mask"
        for mask in masks
        if image in grids and mask in grids and (difference := grids[image].differs_from(grids[mask]))
    ]
