"""Volumes whose blank slices are known by construction."""

from pathlib import Path

import numpy as np
import pytest

from nnunetv2_swinfuse.imaging.grid import Grid
from nnunetv2_swinfuse.imaging.volume import VoxelVolume
from nnunetv2_swinfuse.inference.blank_slices import check_blank_slices, find_gaps

NOISE = np.random.default_rng(0).normal(0, 100, (12, 20, 24)).astype(np.float32)


def blanked(numbers, axis=0, value=0.0):
    voxels = np.moveaxis(NOISE.copy(), axis, 0)
    voxels[list(numbers)] = value
    return np.moveaxis(voxels, 0, axis)


def finding(voxels):
    return check_blank_slices(VoxelVolume(Path("a"), voxels, Grid((1,) * 3, (1.0,) * 3, (0.0,) * 3, (1.0,) * 9), False))


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [
        ((), []),
        ((0, 1, 10, 11), []),  # padding at both ends
        ((5,), [(5, 6)]),
        ((3, 4, 5), [(3, 6)]),
        ((0, 2, 4, 5, 11), [(2, 3), (4, 6)]),
        (range(12), []),  # for check_content to refuse
        (range(0, 12, 2), [(n, n + 1) for n in range(2, 12, 2)]),
    ],
)
def test_gaps_lie_within_the_image(numbers, gaps):
    assert list(find_gaps(blanked(numbers))) == gaps


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("value", [0.0, -1024.0])
def test_several_gaps_are_refused_along_any_axis(axis, value):
    found = finding(blanked(range(2, 10, 2), axis, value))
    assert found.severity.name == "REFUSED"
    assert f"4 of {NOISE.shape[axis]} slices along {'zyx'[axis]}" in found.reason
    assert "(2, 4, 6, 8)" in found.reason


def test_one_gap_is_a_warning_and_names_its_slices():
    found = finding(blanked((4, 5, 6)))
    assert found.severity.name == "WARNING"
    assert "in 1 place(s) within the image (4-6)" in found.reason


def test_one_voxel_that_differs_makes_a_slice_not_blank():
    voxels = blanked((2, 4, 6))
    voxels[(2, 4, 6), 3, 5] = 1  # between the voxels that are looked at first
    assert finding(voxels) is None


def test_noise_outside_the_body_is_no_image():
    voxels = np.zeros_like(NOISE)
    voxels[5:9] = NOISE[5:9]
    voxels[2, 3, 3] = 40  # 1 of 480 voxels
    voxels[11, :2, :2] = 40  # 4 of 480 voxels
    assert finding(voxels) is None
    voxels[11, :, 0] = 40  # 20 of 480 voxels
    assert finding(voxels).severity.name == "WARNING"
