"""Where the axes of the body point in the images that the network sees, compared with pretraining.

Pretraining brings all volumes to RAS order: arrays (z, y, x) run from feet to head, from back to front and from left to
right. nnU-Net's default reader keeps the order of the files, and its plans may exchange axes after that. A flip matters
only along an axis along which augmentation does not mirror.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_swinfuse.imaging.orientation import orientation_code
from nnunetv2_swinfuse.nnunet_names import REORIENTING_READER

# By the direction in which an index grows: to the right or left, to the front or back, to the head or feet.
AXES = {"R": "left-right", "L": "left-right", "A": "back-front", "P": "back-front", "S": "feet-head", "I": "feet-head"}
# Of the first, second and third axis of an array: (z, y, x) of RAS.
PRETRAINED = "SAR"
TO_LPS = np.array([[-1.0], [-1.0], [1.0]])
REMEDY = (
    f'Add "overwrite_image_reader_writer": "{REORIENTING_READER}" to dataset.json, then plan and preprocess again '
    "(docs/nnunet.md, Orientation of the images)"
)


def axis_directions(properties: Mapping[str, Any], transpose: Sequence[int]) -> str | None:
    """Where the indices of a preprocessed image grow to, a letter of :data:`AXES` for each axis of its array.

    Args:
        properties: what nnU-Net's reader noted of the image.
        transpose: the plans' `transpose_forward`.

    Returns:
        three letters, such as `SAR`, or None for a reader that notes no directions.
    """
    if "sitk_stuff" in properties:
        direction = np.reshape(properties["sitk_stuff"]["direction"], (-1,))
    elif "nibabel_stuff" in properties:
        noted = properties["nibabel_stuff"]
        # nibabel's world is RAS, ITK's is LPS.
        affine = TO_LPS * np.asarray(noted.get("reoriented_affine", noted["original_affine"]))[:3, :3]
        direction = (affine / np.linalg.norm(affine, axis=0)).ravel()
    else:
        return None
    if len(direction) != 9:
        return None
    code = orientation_code(tuple(float(value) for value in direction))
    # Arrays have the file's last axis first.
    return "".join(code[2 - axis] for axis in transpose)


def orientation_warnings(
    directions: Iterable[str | None], transpose: Sequence[int], mirrored: Collection[int]
) -> list[str]:
    """Says that images have other axes than in pretraining, or are mirrored, and what to do; empty when they do not.

    Args:
        directions: of the images, from :func:`axis_directions`.
        transpose: the plans' `transpose_forward`.
        mirrored: axes of the arrays along which augmentation mirrors.
    """
    known = [letters for letters in directions if letters is not None]
    other = [names for letters in known if (names := _axes(letters)) != _axes(PRETRAINED)]
    flipped = [flips for letters in known if (flips := _flips(letters, mirrored))]
    warnings = []
    if other:
        remedy = REMEDY
        if list(transpose) != [0, 1, 2]:
            remedy = (
                "The plans exchange axes so that the one with the thickest slices comes first (transpose_forward): "
                "expect less of the encoder"
            )
        warnings.append(
            f"in {len(other)} of {len(known)} images looked at, the axes that the network sees are "
            f"{', '.join(_most_common(other))}; the encoder was pretrained with "
            f"{', '.join(_axes(PRETRAINED))}. {remedy}"
        )
    if flipped:
        warnings.append(
            f"{len(flipped)} of {len(known)} images looked at are mirrored compared with pretraining (along "
            f"{', '.join(_most_common(flipped))}), and this training does not mirror them as "
            f"augmentation. {REMEDY}, or train with mirroring"
        )
    return warnings


def _most_common(found: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return Counter(found).most_common(1)[0][0]


def _axes(letters: str) -> tuple[str, ...]:
    return tuple(AXES[letter] for letter in letters)


def _flips(letters: str, mirrored: Collection[int]) -> tuple[str, ...]:
    """Axes that run against pretraining and are not mirrored at random."""
    return tuple(
        AXES[letter] for axis, letter in enumerate(letters) if letter not in PRETRAINED and axis not in mirrored
    )
