"""Grids written by hand against a model of 100 x 100 x 100 mm at 2 mm."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnunetv2_swinfuse.imaging.grid import Grid
from nnunetv2_swinfuse.imaging.volume import VoxelVolume
from nnunetv2_swinfuse.inference.geometry_checks import (
    check_direction,
    check_field_of_view,
    check_orientation,
    check_size,
    check_spacing,
)

EYE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
MODEL = SimpleNamespace(
    spacings=np.full((2, 3), 2.0),
    extents=np.full((2, 3), 100.0),
    orientations=frozenset({"LPS"}),
    file_ending=".nii.gz",
)


def volume(shape=(50, 50, 50), spacing=(2.0, 2.0, 2.0), direction=EYE, voxels=None):
    voxels = np.ones(shape, np.float32) if voxels is None else voxels
    return VoxelVolume(Path("a.nii.gz"), voxels, Grid(shape[::-1], spacing[::-1], (0.0,) * 3, direction), True)


def severity(finding):
    return None if finding is None else finding.severity.name


@pytest.mark.parametrize(("shape", "expected"), [((4, 4, 4), None), ((3, 50, 50), "REFUSED"), ((50, 50, 1), "REFUSED")])
def test_size(shape, expected):
    assert severity(check_size(volume(shape))) == expected


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        (EYE, None),
        ((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0), None),
        ((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0), None),
        ((1.0, 0.3, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), "REFUSED"),
        ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 2.0), "REFUSED"),
        ((float("nan"), *EYE[1:]), "REFUSED"),
    ],
    ids=["identity", "quarter turn", "oblique", "sheared", "scaled", "NaN"],
)
def test_direction(direction, expected):
    assert severity(check_direction(volume(direction=direction))) == expected


@pytest.mark.parametrize(
    ("mm", "expected"),
    [(2, None), (3.0, None), (4, "WARNING"), (6.1, "REFUSED"), (0.7, None), (0.6, "WARNING"), (0.1, "REFUSED"),
     (0, "REFUSED"), (float("nan"), "REFUSED")],
)  # fmt: skip
def test_spacing(mm, expected):
    finding = check_spacing(volume(spacing=(2.0, mm, 2.0)), MODEL)
    assert severity(finding) == expected
    assert finding is None or "2 x 2 x 2 mm" in finding.reason


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((50, 50, 50), None), ((26, 50, 50), None), ((24, 50, 50), "WARNING"), ((12, 50, 50), "REFUSED"),
     ((100, 50, 50), None), ((101, 50, 50), "WARNING"), ((251, 50, 50), "REFUSED"),
     ((26, 26, 26), "WARNING"), ((25, 25, 24), "REFUSED")],
)  # fmt: skip
def test_field_of_view(sides, expected):
    assert severity(check_field_of_view(volume(sides), MODEL)) == expected


def test_only_nonzero_voxels_are_seen():
    voxels = np.zeros((50, 50, 50), np.float32)
    voxels[10:20, :, :] = 1
    finding = check_field_of_view(volume(voxels=voxels), MODEL)
    assert severity(finding) == "REFUSED"
    assert "shows 20 x 100 x 100 mm" in finding.reason


def test_orientation():
    assert check_orientation(volume(), MODEL) is None
    mirrored = check_orientation(volume(direction=(-1.0, *EYE[1:])), MODEL)
    assert severity(mirrored) == "REFUSED"
    assert "stored as RPS" in mirrored.reason
    assert check_orientation(volume(direction=(-1.0, *EYE[1:])), SimpleNamespace(orientations=None)) is None
