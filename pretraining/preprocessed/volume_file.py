"""The format of a preprocessed volume: one blosc2 array `.b2nd` with metadata. Written and read here, without nnunetv2.

The array is float32 (1, z, y, x), normalised and resampled, in chunks of about the size of a crop. Its metadata:

| key | content |
| --- | --- |
| `foreground` | voxels of the body: little-endian int16 (n, 3), z, y, x |
| `padding` | intensity outside the volume |
| `spacing` | mm (z, y, x) |
| `native_spacing` | mm (z, y, x) before resampling |
| `native_orientation` | of the raw file, such as `LPS` |
| `origin` | digest of the raw files and of the normalisation that the volume was computed from |
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import blosc2
import numpy as np

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.architecture.topology import Triple
from nnunetv2_swinfuse.errors import InputError

# Memory-mapping does not work on Windows (nnU-Net's issue 2723).
MAPPED = {} if os.name == "nt" else {"mmap_mode": "r"}
FOREGROUND_TYPE = np.dtype("<i2")
# Normalised intensities stay far below this; a flipped bit in an exponent does not. blosc2 has no checksums.
LARGEST_NORMALISED = 1e6
REMEDY = "preprocess again with --overwrite"


class NativeGrid(NamedTuple):
    """A volume before preprocessing: spacing in mm (z, y, x) after reorientation; orientation of the raw file."""

    spacing: tuple[float, ...]
    orientation: str


UNKNOWN = NativeGrid((1.0, 1.0, 1.0), "")


@dataclass(frozen=True)
class VolumeMetadata:
    """What a file holds besides the voxels.

    Attributes:
        foreground: voxels of the body (n, 3), z, y, x; may be empty.
        padding: intensity outside the volume.
        spacing: mm (z, y, x).
        native: spacing and orientation before preprocessing.
        origin: digest of what the volume was computed from.
    """

    foreground: np.ndarray
    padding: float
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    native: NativeGrid = UNKNOWN
    origin: str = ""


class StoredGrid(NamedTuple):
    """What the index says of a file: its voxels (z, y, x), and what it was before preprocessing."""

    shape: tuple[int, ...]
    native: NativeGrid


def write_volume(
    path: Path, data: np.ndarray, metadata: VolumeMetadata, chunks: Sequence[int], blocks: Sequence[int]
) -> None:
    """Writes a volume; a reader never sees an incomplete file.

    Args:
        path: ends in `.b2nd`; missing folders are created.
        data: float32 (1, z, y, x).
        metadata: see :class:`VolumeMetadata`.
        chunks, blocks: blosc2's two levels of division, four sizes each.

    Raises:
        OSError: with `ENOSPC` when the disk is full.
    """
    # Not vlmeta: blosc2 4.14 never frees what it has read of that.
    meta = {
        "foreground": metadata.foreground.astype(FOREGROUND_TYPE).tobytes(),
        "padding": float(metadata.padding),
        "spacing": list(metadata.spacing),
        "native_spacing": list(metadata.native.spacing),
        "native_orientation": metadata.native.orientation,
        "origin": metadata.origin,
    }
    try:
        with atomic_write(path) as temporary:
            blosc2.asarray(
                np.ascontiguousarray(data), urlpath=str(temporary), mode="w", chunks=tuple(chunks),
                blocks=tuple(blocks), cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1}, meta=meta,
            )  # fmt: skip
    except RuntimeError as error:
        # blosc2 only reports that it failed; with less space than the volume needs, a full disk is the reason.
        if shutil.disk_usage(path.parent).free < data.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def open_volume(path: Path) -> blosc2.NDArray:
    """Opens a volume without reading its voxels.

    Raises:
        InputError: naming the file, when it is missing or damaged.
    """
    try:
        volume = blosc2.open(str(path), mode="r", dparams={"nthreads": 1}, **MAPPED)
    except Exception as error:
        # Damaged bytes make blosc2 raise errors of many kinds.
        raise InputError(f"{path}: missing or damaged ({type(error).__name__}: {error}); {REMEDY}") from error
    if not isinstance(volume, blosc2.NDArray) or volume.dtype != np.float32 or volume.ndim != 4:
        raise InputError(f"{path}: damaged, or no volume of float32 (1, z, y, x); {REMEDY}")
    return volume


def foreground_points(path: Path, volume: blosc2.NDArray) -> np.ndarray:
    """Voxels of the body (n, 3), z, y, x, of an opened volume; raises InputError naming `path` where it has none."""
    try:
        return np.frombuffer(_metadata(path, volume, "foreground"), FOREGROUND_TYPE).reshape(-1, 3)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged foreground ({error}); {REMEDY}") from error


def part_inside(shape: Sequence[int], start: np.ndarray, crop_size: Triple) -> np.ndarray:
    """The part of a crop that lies inside the volume; around it the crop is padding.

    Args:
        shape: voxels of the volume (z, y, x).
        start: first voxel of the crop (z, y, x); negative where padding comes first.
        crop_size: voxels (z, y, x).

    Returns:
        int64 (3, 2): along z, y and x the first voxel of the part, and the one after its last, counted in the crop.
    """
    return np.stack([np.maximum(start, 0), np.minimum(start + np.array(crop_size), shape)], axis=1) - start[:, None]


def read_crop(path: Path, volume: blosc2.NDArray, start: np.ndarray, crop_size: Triple) -> np.ndarray:
    """Reads a crop float32 (1, z, y, x), padded outside the volume; decompresses only the blocks it overlaps.

    Args:
        path: path of the volume, for error messages.
        volume: from :func:`open_volume`.
        start: first voxel (z, y, x); negative where padding comes first.
        crop_size: voxels (z, y, x).

    Raises:
        InputError: naming the file, when its metadata or the blocks of this crop are damaged.
    """
    inside = part_inside(volume.shape[1:], start, crop_size)
    region = (slice(None), *(slice(int(first), int(last)) for first, last in inside + start[:, None]))
    padding = [(0, 0), *((int(first), int(size - last)) for size, (first, last) in zip(crop_size, inside, strict=True))]
    try:
        data = volume[region]
        if np.any(padding):
            data = np.pad(data, padding, constant_values=_metadata(path, volume, "padding"))
        data = np.ascontiguousarray(data, dtype=np.float32)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); {REMEDY}") from error
    # In this form NaN is refused too.
    if data.size and not (float(data.min()) > -LARGEST_NORMALISED and float(data.max()) < LARGEST_NORMALISED):
        raise InputError(
            f"{path}: damaged, intensities of {data.min():.3g} to {data.max():.3g}; those of a normalised volume stay "
            f"below {LARGEST_NORMALISED:.0g}; {REMEDY}"
        )
    return data


def grid_if_complete(path: Path, origin: str) -> StoredGrid | None:
    """Grid of a file that is intact and has this origin; None for any other, which has to be written."""
    if not path.is_file():
        return None
    try:
        volume = blosc2.open(str(path), mode="r")
        if volume.schunk.meta["origin"] != origin:
            return None
        native = NativeGrid(tuple(volume.schunk.meta["native_spacing"]), str(volume.schunk.meta["native_orientation"]))
    except (RuntimeError, OSError, ValueError, KeyError):
        return None
    return StoredGrid(tuple(int(size) for size in volume.shape[1:]), native)


def _metadata(path: Path, volume: blosc2.NDArray, key: str) -> Any:
    try:
        return volume.schunk.meta[key]
    except (RuntimeError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged, or of an older version; {REMEDY}") from error
