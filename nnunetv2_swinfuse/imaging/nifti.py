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
_MAX_SURPLUS_BYTES = 1 << 26
# NIfTI's datatype codes of the types that can hold NaN.
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


@dataclass(frozen=True)
class Scan:
    """What reading a file to its end has shown.

    Attributes:
        announced, present: bytes of voxels according to the header, and in the file.
        surplus: bytes after the voxels, counted up to 64 MiB.
        broken: voxels that are NaN or infinite.
    """

    announced: int
    present: int
    surplus: int
    broken: int


def check_nifti(path: Path) -> None:
    """Reads a NIfTI file, compressed or not, to its end; files of other formats pass.

    Raises:
        InputError: naming the file, when it holds fewer bytes than its header announces, when its header or its
            compression is damaged, or when voxels are NaN or infinite.
    """
    scan = scan_nifti(path)
    if scan is None:
        return
    if scan.present < scan.announced:
        raise InputError(
            f"{path}: truncated, {scan.present} of {scan.announced} bytes of voxels are present; replace or remove it"
        )
    if scan.broken:
        raise InputError(f"{path}: {scan.broken} NaN or infinite voxel(s); repair or remove it")


def scan_nifti(path: Path) -> Scan | None:
    """Reads a NIfTI file to its end, a few megabytes at a time; None for files of other formats.

    Raises:
        InputError: naming the file, when its header or its compression is damaged.
    """
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        return None
    try:
        with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
            layout = parse_header(file.read(_HEADER_BYTES))
            if layout is None:
                # ANALYZE, or something else by that name: for ITK to judge.
                return None
            return _read_voxels(file, layout)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: truncated or damaged ({error}); replace or remove it") from error
    except HeaderError as error:
        raise InputError(f"{path}: damaged header ({error}); replace or remove it") from error


class HeaderError(ValueError):
    """A NIfTI header that no file can have."""


def parse_header(header: bytes) -> Layout | None:
    """Layout of a NIfTI-1 or NIfTI-2 file (nifti.nimh.nih.gov) by its first 540 bytes; None for another format.

    Raises:
        HeaderError: for sizes, an offset or a voxel type that no file can have.
    """
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
        sizes = dimensions[1 : dimensions[0] + 1] if 0 < dimensions[0] < 8 else ()
        if not sizes or min(sizes) < 1:
            raise HeaderError(f"dimensions {dimensions}")
        if not 0 <= offset < 2**40:
            raise HeaderError(f"voxels from byte {offset} on")
        if not 0 < bits <= 256 or (code in _FLOATS and bits != 8 * np.dtype(_FLOATS[code]).itemsize):
            raise HeaderError(f"voxels of type {code} with {bits} bits")
        length = prod(sizes) * bits // 8
        return Layout(int(offset), length, order + _FLOATS[code] if code in _FLOATS else None)
    return None


def _read_voxels(file: BinaryIO | gzip.GzipFile, layout: Layout) -> Scan:
    file.seek(layout.offset)
    present = broken = surplus = 0
    while block := file.read(min(_BLOCK_BYTES, layout.length - present)):
        present += len(block)
        if layout.floats is not None:
            count = len(block) // np.dtype(layout.floats).itemsize
            broken += int((~np.isfinite(np.frombuffer(block, layout.floats, count))).sum())
    # What follows the voxels tells whether a compressed stream is sound; it need not be read without end.
    while surplus < _MAX_SURPLUS_BYTES and (block := file.read(_BLOCK_BYTES)):
        surplus += len(block)
    return Scan(layout.length, present, surplus, broken)
