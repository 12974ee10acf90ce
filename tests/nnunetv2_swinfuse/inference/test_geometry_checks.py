"""Grids written by hand against a model of 100 x 100 x 100 mm at 2 mm."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

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
    plans={"image_reader_writer": "SimpleITKIO"},
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
    assert severity(check_field_of_view([volume(sides)], MODEL)) == expected


def test_only_nonzero_voxels_are_seen():
    voxels = np.zeros((50, 50, 50), np.float32)
    voxels[10:20, :, :] = 1
    finding = check_field_of_view([volume(voxels=voxels)], MODEL)
    assert severity(finding) == "REFUSED"
    assert "shows 20 x 100 x 100 mm" in finding.reason


def test_channels_are_seen_as_one_field_of_view():
    low, high = np.zeros((2, 50, 50, 50), np.float32)
    low[2:10, 3:40, :] = 1
    high[30:42, :45, :] = 1
    finding = check_field_of_view([volume(voxels=low), volume(voxels=high)], MODEL)
    # Slices 2 to 41, rows 0 to 44 and all columns, at 2 mm.
    assert finding is None
    smaller = SimpleNamespace(**{**vars(MODEL), "extents": np.full((2, 3), 30.0)})
    finding = check_field_of_view([volume(voxels=low), volume(voxels=high)], smaller)
    assert "shows 80 x 90 x 100 mm (z, y, x);" in finding.reason
    assert finding.file is None
    assert severity(check_field_of_view([volume(voxels=low)], MODEL)) == "REFUSED"


@pytest.mark.parametrize("reader", [NibabelIOWithReorient, SimpleITKIOWithReorient])
def test_a_model_whose_reader_turns_images_sees_turned_ones(tmp_path, reader):
    voxels = np.ones((60, 50, 6), np.float32)
    voxels[:10] = 0
    # Sagittal slices: the x axis of the array points to the left, y upwards, z to the back.
    direction = sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation("LSP")
    image = volume(voxels=voxels, shape=voxels.shape, spacing=(2.0, 1.0, 9.0), direction=direction)
    file = sitk.GetImageFromArray(voxels)
    file.SetSpacing(image.grid.spacing)
    file.SetDirection(direction)
    sitk.WriteImage(file, str(tmp_path / "a.nii.gz"))
    array, properties = reader().read_images([str(tmp_path / "a.nii.gz")])
    assert properties["spacing"] == [1.0, 2.0, 9.0]
    extent = np.array(crop_to_nonzero(array, None)[0].shape[1:]) * properties["spacing"]
    np.testing.assert_array_equal(extent, (50, 100, 54))
    spacings = np.array([properties["spacing"]])
    model = {"spacings": spacings, "extents": extent[None], "plans": {"image_reader_writer": reader.__name__}}
    assert check_spacing(image, SimpleNamespace(**model)) is None
    assert check_field_of_view([image], SimpleNamespace(**model)) is None
    narrow = SimpleNamespace(**{**model, "extents": extent[None] / 6, "spacings": spacings / 4})
    assert "1 x 2 x 9 mm (z, y, x after turning to RAS)" in check_spacing(image, narrow).reason
    assert "50 x 100 x 54 mm (z, y, x after turning to RAS)" in check_field_of_view([image], narrow).reason


def test_orientation():
    assert check_orientation(volume(), MODEL) is None
    mirrored = check_orientation(volume(direction=(-1.0, *EYE[1:])), MODEL)
    assert severity(mirrored) == "REFUSED"
    assert "stored as RPS" in mirrored.reason
    assert check_orientation(volume(direction=(-1.0, *EYE[1:])), SimpleNamespace(orientations=None)) is None
