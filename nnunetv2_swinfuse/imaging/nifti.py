"""Checks that ITK does not make of NIfTI files: it reads missing, NaN and infinite voxels as zeros."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.nifti_header import HEADER_BYTES, HeaderError, NiftiHeader, parse_nifti_header

_BLOCK_BYTES = 1 << 22
_MAX_SURPLUS_BYTES = 1 << 26


@dataclass(frozen=True)
class Scan:
    """What reading a file to its end has shown.

    Attributes:
        header: of the file.
        present: bytes of voxels in the file; the header announces `header.length`.
        surplus: bytes after the voxels, counted up to 64 MiB.
        broken: voxels that are NaN or infinite.
    """

    header: NiftiHeader
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
    if scan.present < scan.header.length:
        raise InputError(
            f"{path}: truncated, {scan.present} of {scan.header.length} bytes of voxels are present; replace or remove "
            "it"
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
            header = parse_nifti_header(file.read(HEADER_BYTES))
            if header is None:
                # Something else by that name: for ITK to judge.
                return None
            return _read_voxels(file, header)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: truncated or damaged ({error}); replace or remove it") from error
    except HeaderError as error:
        raise InputError(f"{path}: damaged header ({error}); replace or remove it") from error


def _read_voxels(file: BinaryIO | gzip.GzipFile, header: NiftiHeader) -> Scan:
    file.seek(header.offset)
    present = broken = surplus = 0
    while block := file.read(min(_BLOCK_BYTES, header.length - present)):
        present += len(block)
        if header.floats is not None:
            count = len(block) // np.dtype(header.floats).itemsize
            broken += int((~np.isfinite(np.frombuffer(block, header.floats, count))).sum())
    # What follows the voxels tells whether a compressed stream is sound; it need not be read without end.
    while surplus < _MAX_SURPLUS_BYTES and (block := file.read(_BLOCK_BYTES)):
        surplus += len(block)
    return Scan(header, present, surplus, broken)
