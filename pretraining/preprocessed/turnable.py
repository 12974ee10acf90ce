"""Which volumes give crops whose quarter turn cannot be inferred from their padding or their resolution.

A crop that is padded along y or x shows its turn by the place of the padding. A volume whose voxels were longer along y
than along x is blurred along one axis after resampling, and the blur turns with the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pretraining.collections.collection import DOMAINS
from pretraining.preprocessed.collection import PreprocessedCollection, format_spacing

# Largest relative difference of the spacings of y and x that counts as isotropic.
PLANE_TOLERANCE = 0.05
# Share of a modality's volumes below which the log warns: hardly any batch then has such a crop to turn.
FEW_TURNABLE = 0.1


def is_isotropic_plane(y: Any, x: Any) -> Any:
    """Whether spacings of y and x, numbers or arrays, differ by at most PLANE_TOLERANCE."""
    return np.maximum(y, x) <= (1 + PLANE_TOLERANCE) * np.minimum(y, x)


def fills_plane(collection: PreprocessedCollection, crop_size: Sequence[int]) -> np.ndarray:
    """Of each volume, bool (n,): whether crops of this size (z, y, x) are not padded along y or x."""
    return (collection.table.shape[:, 1:] >= np.asarray(crop_size)[1:]).all(1)


def turnable_volumes(collection: PreprocessedCollection, crop_size: Sequence[int]) -> np.ndarray:
    """Of each volume, bool (n,): whether crops of this size (z, y, x) can be turned without showing by how much."""
    _, y, x = collection.table.native_spacing.T
    return fills_plane(collection, crop_size) & is_isotropic_plane(y, x)


def turning_notes(collection: PreprocessedCollection, crop_size: Sequence[int], domains: Sequence[str]) -> list[str]:
    """Notes for the log: how many training volumes of each modality can be turned, and what to do about hardly any."""
    table = collection.table
    turnable, filled = turnable_volumes(collection, crop_size), fills_plane(collection, crop_size)
    training = ~table.validation[table.patient]
    notes = []
    for domain in domains:
        chosen = training & (table.domain == DOMAINS.index(domain))
        count, total = int(turnable[chosen].sum()), int(chosen.sum())
        if count == total:
            continue
        too_small, anisotropic = int((~filled[chosen]).sum()), int((filled & ~turnable)[chosen].sum())
        causes = []
        if too_small:
            causes.append(f"{too_small} are smaller than a crop along y or x, which is padded there")
        if anisotropic:
            causes.append(f"{anisotropic} had voxels of other sizes along y and x before resampling")
        text = (
            f"{count} of {total} {domain} volumes can be turned by quarters ({'; '.join(causes)}): the turn of the "
            "others could be inferred. They are not turned and take no part in the rotation task"
        )
        if count < FEW_TURNABLE * total:
            remedy = _remedy(collection, crop_size, chosen & ~filled)
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
