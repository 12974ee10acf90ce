"""Which volumes are turnable: neither padding nor resolution of their crops would reveal a quarter turn.

A crop that is padded along y or x shows its turn by where the padding lies. A volume whose voxels differed in size
along y and x is blurred along one of them after resampling, and the blur turns with the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pretraining.collections.collection import DOMAINS
from pretraining.preprocessed.collection import PreprocessedCollection, format_spacing

# Largest relative difference of the spacings of y and x that counts as isotropic.
PLANE_TOLERANCE = 0.05
# The log warns if a smaller share of a modality's volumes is turnable.
MIN_TURNABLE_SHARE = 0.1


def is_isotropic_plane(y: Any, x: Any) -> Any:
    """Whether spacings of y and x, numbers or arrays, differ by at most PLANE_TOLERANCE."""
    return np.maximum(y, x) <= (1 + PLANE_TOLERANCE) * np.minimum(y, x)


def fills_plane(collection: PreprocessedCollection, crop_size: Sequence[int]) -> np.ndarray:
    """For each volume, bool (n,): whether a crop of this size (z, y, x) needs no padding along y and x."""
    return (collection.table.shape[:, 1:] >= np.asarray(crop_size)[1:]).all(1)


def turnable_volumes(collection: PreprocessedCollection, crop_size: Sequence[int]) -> np.ndarray:
    """For each volume, bool (n,): whether it is turnable with crops of this size (z, y, x)."""
    _, y, x = collection.table.native_spacing.T
    return fills_plane(collection, crop_size) & is_isotropic_plane(y, x)


def turning_notes(collection: PreprocessedCollection, crop_size: Sequence[int], domains: Sequence[str]) -> list[str]:
    """Notes for the log: how many training volumes of each modality are turnable, and a remedy if these are few."""
    table = collection.table
    turnable, filled = turnable_volumes(collection, crop_size), fills_plane(collection, crop_size)
    training = ~table.validation[table.patient]
    notes = []
    for domain in domains:
        selected = training & (table.domain == DOMAINS.index(domain))
        count, total = int(turnable[selected].sum()), int(selected.sum())
        if count == total:
            continue
        too_small, anisotropic = int((~filled[selected]).sum()), int((filled & ~turnable)[selected].sum())
        causes = []
        if too_small:
            causes.append(f"{too_small} are smaller than a crop along y or x, which is padded there")
        if anisotropic:
            causes.append(f"{anisotropic} had voxels of different sizes along y and x before resampling")
        text = (
            f"{count} of {total} {domain} volumes can be turned by quarters ({'; '.join(causes)}): in the others "
            "padding or blur would reveal the turn. They are not turned and take no part in the rotation task"
        )
        if count < MIN_TURNABLE_SHARE * total:
            remedy = _remedy(collection, crop_size, selected & ~filled)
            text = f"WARNING: hardly any {domain} crop trains the rotation task. {text}. {remedy}"
        notes.append(text)
    return notes


def _remedy(collection: PreprocessedCollection, crop_size: Sequence[int], too_small: np.ndarray) -> str:
    if not too_small.any():
        return "--no-quarter_turns leaves the task out"
    # Half of the small volumes are at least this large.
    side = int(np.median(collection.table.shape[too_small, 1:].min(1)))
    z, y, x = (float(distance) for distance in collection.spacing)
    scale = side / crop_size[1]
    return (
        f"Crops of at most {side} voxels along y and x would fit half of the small volumes (--crop_size), as would a "
        f"spacing of {format_spacing((z, y * scale, x * scale))} (--spacing); --no-quarter_turns leaves the task out"
    )
