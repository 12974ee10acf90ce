"""Which axes of the body the network sees first, second and third, compared with pretraining.

Pretraining brings all volumes to RAS order: arrays (z, y, x) run from feet to head, from back to front and from left to
right. nnU-Net's default reader keeps the order of the files, and its plans may exchange axes after that. Flips are not
looked at, since nnU-Net's augmentation mirrors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_swinfuse.imaging.orientation import orientation_code

AXES = ("left-right", "back-front", "feet-head")
LETTERS = ("RL", "AP", "IS")
PRETRAINED = (2, 1, 0)


def axis_order(properties: Mapping[str, Any], transpose: Sequence[int]) -> tuple[int, ...] | None:
    """Which of :data:`AXES` each axis of a preprocessed image is.

    Args:
        properties: what nnU-Net's reader noted of the image.
        transpose: the plans' `transpose_forward`.

    Returns:
        three numbers, or None for a reader that notes no directions.
    """
    if "sitk_stuff" in properties:
        direction = np.reshape(properties["sitk_stuff"]["direction"], (-1,))
    elif "nibabel_stuff" in properties:
        noted = properties["nibabel_stuff"]
        affine = np.asarray(noted.get("reoriented_affine", noted["original_affine"]))[:3, :3]
        direction = (affine / np.linalg.norm(affine, axis=0)).ravel()
    else:
        return None
    if len(direction) != 9:
        return None
    code = orientation_code(tuple(float(value) for value in direction))
    of_file = [next(axis for axis, letters in enumerate(LETTERS) if letter in letters) for letter in code]
    # Arrays have the file's last axis first.
    return tuple(of_file[2 - axis] for axis in transpose)


def order_warning(orders: Iterable[tuple[int, ...] | None], transpose: Sequence[int]) -> str | None:
    """Says that images have other axes than in pretraining, and what to do; None when they do not.

    Args:
        orders: of the images, from :func:`axis_order`.
        transpose: the plans' `transpose_forward`.
    """
    known = [order for order in orders if order is not None]
    other = [order for order in known if order != PRETRAINED]
    if not other:
        return None
    seen = ", ".join(AXES[axis] for axis in max(set(other), key=other.count))
    text = (
        f"in {len(other)} of {len(known)} images looked at, the axes that the network sees are {seen}; the encoder was "
        f"pretrained with {', '.join(AXES[axis] for axis in PRETRAINED)}. "
    )
    if list(transpose) != [0, 1, 2]:
        return text + (
            "The plans exchange axes so that the one with the thickest slices comes first (transpose_forward): expect "
            "less of the encoder"
        )
    return text + (
        'Add "overwrite_image_reader_writer": "SimpleITKIOWithReorient" to dataset.json, then plan and preprocess '
        "again (docs/nnunet.md, Orientation of the images)"
    )
