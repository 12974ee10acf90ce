import errno
import os
import shutil

import blosc2
import numpy as np
import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.preprocessed.volume_file import (
    NativeGrid,
    StoredGrid,
    VolumeMetadata,
    foreground_points,
    grid_if_complete,
    open_volume,
    part_inside,
    read_crop,
    write_volume,
)

SHAPE = (7, 9, 8)
NATIVE = NativeGrid((5.0, 0.8, 0.7), "LPS")
POINTS = np.array([[1, 2, 3], [6, 8, 7]])


@pytest.fixture
def voxels():
    return np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)


@pytest.fixture
def path(tmp_path, voxels):
    path = tmp_path / "patient" / "a_CT.b2nd"
    metadata = VolumeMetadata(POINTS, -7.0, (3.0, 1.0, 1.0), NATIVE, "digest")
    write_volume(path, voxels, metadata, (1, 4, 4, 4), (1, 2, 2, 2))
    return path


def test_what_is_written_is_read(path, voxels):
    volume = open_volume(path)
    assert volume.dtype == np.float32
    assert volume.chunks == (1, 4, 4, 4)
    assert np.array_equal(volume[:], voxels)
    assert foreground_points(path, volume).tolist() == POINTS.tolist()
    expected = {
        "padding": -7.0, "spacing": [3.0, 1.0, 1.0], "native_spacing": [5.0, 0.8, 0.7], "native_orientation": "LPS",
        "origin": "digest",
    }  # fmt: skip
    assert {name: volume.schunk.meta[name] for name in expected} == expected


@pytest.mark.parametrize("start", [(0, 0, 0), (2, 3, 1), (-2, 5, 3), (4, -3, 6), (-4, -4, -4)])
def test_a_crop_is_the_padded_volume_cut(path, voxels, start):
    padded = np.pad(voxels[0], 10, constant_values=-7.0)
    size = (5, 8, 6)
    expected = padded[tuple(slice(10 + s, 10 + s + n) for s, n in zip(start, size, strict=True))]
    crop = read_crop(path, open_volume(path), np.array(start), size)
    assert crop.flags.c_contiguous
    assert np.array_equal(crop, expected[None])
    first, last = part_inside(SHAPE, np.array(start), size).T
    inside = np.zeros(size, bool)
    inside[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = True
    # No voxel of the volume has the intensity of the padding.
    assert np.array_equal(inside, expected != -7.0)


def test_a_file_is_complete_only_with_the_same_origin(path):
    assert grid_if_complete(path, "digest") == StoredGrid(SHAPE, NATIVE)
    assert grid_if_complete(path, "something else") is None
    assert grid_if_complete(path.with_name("b.b2nd"), "digest") is None
    path.write_bytes(path.read_bytes()[:100])
    assert grid_if_complete(path, "digest") is None


def test_missing_and_damaged_files_are_named(path):
    path.write_bytes(path.read_bytes()[:100])
    for broken in (path, path.with_name("b.b2nd")):
        with pytest.raises(InputError, match=rf"{broken.name}: missing or damaged.*--overwrite"):
            open_volume(broken)


def test_a_file_of_another_format_is_named(tmp_path):
    path = tmp_path / "a.b2nd"
    blosc2.asarray(np.zeros((1, 4, 4, 4), np.float32), urlpath=str(path), mode="w")
    with pytest.raises(InputError, match=r"a\.b2nd: damaged, or of an older version"):
        foreground_points(path, open_volume(path))
    with pytest.raises(InputError, match=r"a\.b2nd: damaged, or of an older version"):
        read_crop(path, open_volume(path), np.array([-1, 0, 0]), (2, 2, 2))


def test_a_failed_write_keeps_the_old_file_and_a_full_disk_is_recognised(path, voxels, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("Error while creating the NDArray")

    before = path.read_bytes()
    monkeypatch.setattr(blosc2, "asarray", fail)
    with pytest.raises(RuntimeError):
        write_volume(path, voxels, VolumeMetadata(POINTS, 0.0), (1, 4, 4, 4), (1, 2, 2, 2))
    usage = shutil.disk_usage(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_volume(path, voxels, VolumeMetadata(POINTS, 0.0), (1, 4, 4, 4), (1, 2, 2, 2))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e7])
def test_intensities_that_no_normalised_volume_has_are_damage(tmp_path, voxels, value):
    path = tmp_path / "a.b2nd"
    voxels[0, 3, 3, 3] = value
    write_volume(path, voxels, VolumeMetadata(POINTS, 0.0), (1, 4, 4, 4), (1, 2, 2, 2))
    assert read_crop(path, open_volume(path), np.array([4, 0, 0]), (3, 8, 8)).shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match=r"a\.b2nd: damaged, intensities of .*preprocess again with --overwrite"):
        read_crop(path, open_volume(path), np.array([2, 2, 2]), (3, 3, 3))


def test_a_damaged_block_and_a_damaged_foreground_are_named(path, tmp_path):
    content = path.read_bytes()
    # The size of a compressed block: whatever is read then fails in blosc2.
    refused = 0
    for place in range(len(content) // 2, len(content), 7):
        path.write_bytes(content[:place] + b"\xff\xff\xff\xff" + content[place + 4 :])
        try:
            read_crop(path, open_volume(path), np.zeros(3, int), SHAPE)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017 - a crop of other blocks may also be read
            refused += 1
    assert refused > 3
    odd = blosc2.asarray(
        np.zeros((1, 4, 4, 4), np.float32), urlpath=str(tmp_path / "b.b2nd"), mode="w", meta={"foreground": b"12345"}
    )
    with pytest.raises(InputError, match=r"b\.b2nd: damaged foreground"):
        foreground_points(tmp_path / "b.b2nd", odd)
