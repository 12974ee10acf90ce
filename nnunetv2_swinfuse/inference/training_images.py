"""Orientation of the training images, which nnU-Net's fingerprint does not hold and on which a model depends."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import read_grid
from nnunetv2_swinfuse.imaging.orientation import orientation_code
from nnunetv2_swinfuse.nnunet_names import IMAGES, RAW

RECORD = "swinfuse_training_images.json"
FORMAT, FORMAT_VERSION = "swinfuse-training-images", 1
CODES = frozenset(
    "".join(code)
    for first in ("RL", "AP", "IS")
    for second in ("RL", "AP", "IS")
    for third in ("RL", "AP", "IS")
    if len({first, second, third}) == 3
    for code in ((a, b, c) for a in first for b in second for c in third)
)


def find_orientations(folder: Path, dataset: str, ending: str, number: int) -> tuple[Mapping[str, int], Path] | None:
    """How many training images of a model have which orientation, and the file or folder that says so; None if unknown.

    The model's own record, or else the headers of the images in nnUNet_raw, if these are as many as it was trained on:
    another dataset can have the same name.

    Args:
        folder: the model's.
        dataset: nnU-Net's name of it.
        ending: of the images, such as `.nii.gz`.
        number: of files of training images, all channels.

    Raises:
        InputError: naming the record, when it is damaged or of a newer format.
    """
    recorded = read_record(folder / RECORD)
    if recorded is not None:
        return recorded, folder / RECORD
    raw = os.environ.get(RAW)
    images = Path(raw) / dataset / IMAGES if raw else None
    if images is None or len(list(images.glob(f"*{ending}"))) != number:
        return None
    counts = count_orientations(images, ending)
    return (counts, images) if counts else None


def count_orientations(images: Path, ending: str) -> Mapping[str, int]:
    """How many images in a folder have which orientation, by their headers; unreadable ones are left out."""
    counts: Counter[str] = Counter()
    for path in sorted(images.glob(f"*{ending}")):
        try:
            counts[orientation_code(read_grid(path).direction)] += 1
        except InputError:
            continue
    return counts


def record(orientations: Mapping[str, int]) -> bytes:
    """The content of a model's record."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "orientations": dict(sorted(orientations.items()))}
    return (json.dumps(content, indent=2) + "\n").encode()


def read_record(path: Path) -> Mapping[str, int] | None:
    """How many images have which orientation, by a record; None when there is none.

    Raises:
        InputError: naming the file, when it is damaged or of a newer format.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT or content["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"format {content['format']} {content['format_version']}, expected {FORMAT} {FORMAT_VERSION}"
            )
        orientations = {code: int(count) for code, count in content["orientations"].items()}
        if not orientations or not orientations.keys() <= CODES:
            raise ValueError(f"orientations {sorted(orientations)}")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: damaged or of another version ({type(error).__name__}: {error}); copy the model again, or "
            "install a newer version of nnunetv2-swinfuse"
        ) from error
    return orientations
