"""The mask that a cascade's first stage made of a case: checked before the second stage is given it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import read_grid
from nnunetv2_swinfuse.imaging.volume import read_volume
from nnunetv2_swinfuse.inference.cases import RECORDS
from nnunetv2_swinfuse.inference.model_files import file_hash


def check_first_stage_mask(
    mask: Path, case: str, image: Path, labels: Mapping[str, Any], image_hashes: Sequence[str]
) -> str:
    """Refuses a mask that is damaged, on another grid, of other labels, or, by its record, of another image.

    nnU-Net compares only the shapes, and ITK reads what a cut file lacks as background.

    Args:
        mask: the file.
        case: its name.
        image: the first channel of the case.
        labels: as in the model's dataset.json: a value, or for a region several, by name.
        image_hashes: SHA-256 of the channels, in order.

    Returns:
        SHA-256 of the mask.

    Raises:
        InputError: naming the file, what was found and what was expected.
    """
    volume = read_volume(mask)
    if difference := read_grid(image).differs_from(volume.grid):
        raise InputError(f"{mask}: not on the grid of {image} ({difference})")
    known = {0}.union(*(value if isinstance(value, list) else [value] for value in labels.values()))
    if unknown := set(np.unique(volume.voxels).tolist()) - known:
        raise InputError(f"{mask}: values {sorted(unknown)[:5]}; the model's labels are {sorted(known)}")
    digest = file_hash(mask)
    try:
        record = json.loads((mask.parent / RECORDS / f"{case}.json").read_text())
        of_this_mask = record["mask_sha256"] == digest
        predicted_from = record["input_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        # Of stock nnU-Net: nothing says which image it was made of.
        return digest
    if of_this_mask and predicted_from != list(image_hashes):
        raise InputError(f"{mask}: predicted from another image than {image}, by the record in {mask.parent / RECORDS}")
    return digest
