"""Orientation of the training images, which nnU-Net's fingerprint does not hold and on which a model depends."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import read_grid
from nnunetv2_swinfuse.imaging.orientation import orientation_code

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


def orientations_of_dataset(images: Path, ending: str) -> frozenset[str]:
    """Orientation codes of the images in a folder, by their headers; unreadable ones are left out."""
    return frozenset(_count(images, ending))


def write_record(path: Path, images: Path, ending: str) -> bool:
    """Writes how many training images have which orientation; False when there are no images to look at."""
    counts = _count(images, ending)
    if counts:
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "orientations": dict(sorted(counts.items()))}
        path.write_text(json.dumps(content, indent=2) + "\n")
    return bool(counts)


def read_record(path: Path) -> frozenset[str] | None:
    """Orientation codes in a record; None when there is none.

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
        codes = frozenset(content["orientations"])
        if not codes or not codes <= CODES:
            raise ValueError(f"orientations {sorted(codes)}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: damaged or of another version ({type(error).__name__}: {error}); copy the model again, or "
            "install a newer version of nnunetv2-swinfuse"
        ) from error
    return codes


def _count(images: Path, ending: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path in sorted(images.glob(f"*{ending}")):
        try:
            counts[orientation_code(read_grid(path).direction)] += 1
        except InputError:
            continue
    return counts
