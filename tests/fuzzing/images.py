"""Raw images: a sound file of every format, and what may come of a damaged one."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.nifti import check_nifti
from nnunetv2_swinfuse.imaging.volume import LARGEST_INTENSITY, VolumeError, VoxelVolume, read_volume
from tests.fuzzing.reader import refused

SPACING = (1.5, 2.0, 3.0)
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)


@cache
def image(ending: str, compress: bool) -> bytes:
    """The sound volume."""
    volume = sitk.GetImageFromArray(VOXELS)
    volume.SetSpacing(SPACING)
    with TemporaryDirectory() as folder:
        sitk.WriteImage(volume, f"{folder}/a{ending}", compress)
        return Path(folder, f"a{ending}").read_bytes()


def read_image(content: bytes, path: Path) -> VoxelVolume | None:
    """None where the file was refused by name; what pretraining checks of raw files is called as well."""
    path.write_bytes(content)
    try:
        check_nifti(path)
    except InputError as error:
        refused(path, error)
    try:
        volume = read_volume(path)
    except VolumeError as error:
        refused(path, error)
        return None
    assert np.isfinite(volume.voxels).all()
    assert np.abs(volume.voxels).max() <= LARGEST_INTENSITY
    return volume


def judge_compressed_nifti(content: bytes, path: Path) -> bool:
    """gzip's checksum guards header and voxels."""
    volume = read_image(content, path)
    if volume is not None:
        np.testing.assert_array_equal(volume.voxels, VOXELS)
        np.testing.assert_allclose(volume.grid.spacing, SPACING)
    return volume is not None


def judge_plain_nifti(content: bytes, path: Path) -> bool:
    """Under a sound header the voxels are what follows it."""
    volume = read_image(content, path)
    if volume is not None and content[:352] == image(".nii", False)[:352]:
        np.testing.assert_array_equal(volume.voxels, np.frombuffer(content[352:], "<i2").reshape(VOXELS.shape))
    return volume is not None


def judge_damaged_then_compressed(content: bytes, path: Path) -> bool:
    """A sound gzip stream of a damaged NIfTI file."""
    volume = read_image(gzip.compress(content, 1), path)
    if volume is not None and content[:352] == image(".nii", False)[:352]:
        np.testing.assert_array_equal(volume.voxels, np.frombuffer(content[352:], "<i2").reshape(VOXELS.shape))
    return volume is not None


def judge_compressed_text_header(content: bytes, path: Path) -> bool:
    """zlib's checksum guards the voxels; nothing guards what the header says of their type and byte order."""
    volume = read_image(content, path)
    if volume is not None and volume.voxels.shape == VOXELS.shape:
        swapped = VOXELS.byteswap()
        kinds = (VOXELS, VOXELS.view("u2"), swapped, swapped.view("u2"))
        assert any(np.array_equal(volume.voxels, voxels.astype(np.float32)) for voxels in kinds)
    return volume is not None


def judge_plain_text_header(content: bytes, path: Path) -> bool:
    return read_image(content, path) is not None
