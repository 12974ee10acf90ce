"""Axes of preprocessed images by hand, for each of nnU-Net's readers, against those of pretraining."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunetv2_swinfuse.training.image_orientation import PRETRAINED, axis_order, order_warning

# Sizes left-right, back-front and feet-head: an array's shape tells which axis is which.
SIZES = (4, 6, 8)
ORIENTATIONS = {"LPS": (2, 1, 0), "RAS": (2, 1, 0), "PIR": (0, 2, 1), "LIP": (1, 2, 0), "IPL": (0, 1, 2)}


@pytest.fixture(params=ORIENTATIONS)
def image(request, tmp_path):
    """A file in that orientation, and the axes of its array."""
    standard = sitk.Image(SIZES, sitk.sitkFloat32)
    path = tmp_path / "image.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(standard, request.param), str(path))
    return path, ORIENTATIONS[request.param]


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, SimpleITKIOWithReorient, NibabelIOWithReorient])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_the_axes_are_those_whose_sizes_the_array_has(image, reader, transpose):
    path, order = image
    voxels, properties = reader().read_images([str(path)])
    found = axis_order(properties, transpose)
    assert tuple(SIZES[axis] for axis in found) == voxels[0].transpose(transpose).shape
    if transpose == (0, 1, 2):
        assert found == (PRETRAINED if "Reorient" in reader.__name__ else order)


def test_oblique_images_have_the_nearest_axes(tmp_path):
    angle = np.deg2rad(20)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nibabel.save(nibabel.Nifti1Image(np.zeros(SIZES, np.float32), affine), tmp_path / "a.nii.gz")
    for reader in (SimpleITKIO, NibabelIO):
        _, properties = reader().read_images([str(tmp_path / "a.nii.gz")])
        assert axis_order(properties, (0, 1, 2)) == PRETRAINED


def test_nothing_is_said_of_axes_as_in_pretraining_or_unknown_ones():
    assert axis_order({"spacing": [1, 1, 1]}, (0, 1, 2)) is None
    assert order_warning([PRETRAINED, None], (0, 1, 2)) is None


def test_the_warning_counts_names_the_axes_and_says_what_to_do():
    text = order_warning([PRETRAINED, (0, 2, 1), (0, 2, 1), None], (0, 1, 2))
    assert text.startswith("in 2 of 3 images looked at, the axes that the network sees are left-right, feet-head, back")
    assert "SimpleITKIOWithReorient" in text
    exchanged = order_warning([(1, 2, 0)], (1, 0, 2))
    assert "The plans exchange axes" in exchanged
    assert "SimpleITKIOWithReorient" not in exchanged
