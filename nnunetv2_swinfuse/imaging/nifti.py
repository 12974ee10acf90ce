"""Checks that ITK does not make of NIfTI files: it reads missing, NaN and infinite voxels as zeros."""

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

_HEADER_BYTES = 540
_BLOCK_BYTES = 1 << 22
# NIfTI's codes for the data types that can hold NaN.
_FLOATS = {16: "f4", 64: "f8"}


@dataclass(frozen=True)
class Layout:
    """Position of the voxels in the uncompressed file.

    Attributes:
        offset: first byte.
        length: number of bytes.
        floats: numpy type of floating point voxels with its byte order, None for other types.
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
            layout = parse_header(file.read(_HEADER_BYTES))
            if layout is None:
                # ANALYZE or another format with this ending: ITK reports whether it can read it.
                return
            length, not_finite = _read_voxels(file, layout)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: truncated or damaged ({error}); replace or remove it") from error
    if length < layout.length:
        raise InputError(
            f"{path}: truncated, {length} of {layout.length} bytes of voxels are present; replace or remove it"
        )
    if not_finite:
        raise InputError(f"{path}: {not_finite} NaN or infinite voxel(s); repair or remove it")


def parse_header(header: bytes) -> Layout | None:
    """Layout of a NIfTI-1 or NIfTI-2 file (nifti.nimh.nih.gov) from its first 540 bytes; None for other formats."""
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
    """Reads to the end; returns the number of bytes of voxels, and the number of voxels that are not finite."""
    file.seek(layout.offset)
    length = not_finite = 0
    while block := file.read(min(_BLOCK_BYTES, layout.length - length)):
        length += len(block)
        if layout.floats is not None:
            whole = len(block) // np.dtype(layout.floats).itemsize
            not_finite += int((~np.isfinite(np.frombuffer(block, layout.floats, whole))).sum())
    # The checksum of a compressed file comes after the voxels.
    while file.read(_BLOCK_BYTES):
        pass
    return length, not_finite
