"""What ITK does not say of a NIfTI file: it reads missing voxels, NaN and infinite ones all as zeros."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nnunetv2_swinfuse.errors import InputError

_HEADER = 540
_BLOCK = 1 << 22
# NIfTI's datatype codes of the types that can hold NaN.
_FLOATS = {16: "f4", 64: "f8"}


@dataclass(frozen=True)
class Layout:
    """Where the voxels lie in the uncompressed file.

    Attributes:
        offset: first byte.
        length: number of bytes.
        floats: numpy type of floating point voxels with their byte order, None for other types.
    """

    offset: int
    length: int
    floats: str | None


def check_nifti(path: Path) -> None:
    """Reads a NIfTI file, compressed or not, to its end; files of other formats pass.

    Raises:
        InputError: naming the file, when it holds fewer bytes than its header announces, when its compression is
            damaged, or when voxels are NaN or infinite.
    """
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        return
    try:
        with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
            layout = parse_header(file.read(_HEADER))
            if layout is None:
                # ANALYZE, or something else by that name: for ITK to judge.
                return
            found, broken = _read_voxels(file, layout)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: truncated or damaged ({error}); replace or remove it") from error
    if found < layout.length:
        raise InputError(
            f"{path}: truncated, {found} of {layout.length} bytes of voxels are there; replace or remove it"
        )
    if broken:
        raise InputError(f"{path}: {broken} NaN or infinite voxel(s); repair or remove it")


def parse_header(header: bytes) -> Layout | None:
    """Layout of a NIfTI-1 or NIfTI-2 file (nifti.nimh.nih.gov) by its first 540 bytes; None for another format."""
    for order in "<>":
        size = struct.unpack_from(f"{order}i", header)[0] if len(header) >= 348 else None
        if size == 348:
            dimensions = struct.unpack_from(f"{order}8h", header, 40)
            code, bits = struct.unpack_from(f"{order}2h", header, 70)
            offset = struct.unpack_from(f"{order}f", header, 108)[0]
        elif size == 540 and len(header) >= 540:
            dimensions = struct.unpack_from(f"{order}8q", header, 16)
            code, bits = struct.unpack_from(f"{order}2h", header, 12)
            offset = struct.unpack_from(f"{order}q", header, 168)[0]
        else:
            continue
        length = prod(dimensions[1 : dimensions[0] + 1]) * bits // 8
        return Layout(int(offset), length, order + _FLOATS[code] if code in _FLOATS else None)
    return None


def _read_voxels(file: BinaryIO | gzip.GzipFile, layout: Layout) -> tuple[int, int]:
    """How many of the announced bytes are there, and how many voxels in them are not finite."""
    file.seek(layout.offset)
    found = broken = 0
    while block := file.read(min(_BLOCK, layout.length - found)):
        found += len(block)
        if layout.floats is not None:
            whole = len(block) // np.dtype(layout.floats).itemsize
            broken += int((~np.isfinite(np.frombuffer(block, layout.floats, whole))).sum())
    # What follows the voxels tells whether a compressed stream is sound.
    while file.read(_BLOCK):
        pass
    return found, broken
