"""Axes of preprocessed images by hand, for each of nnU-Net's readers, against those of pretraining."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunetv2_swinfuse.training.image_orientation import AXES, PRETRAINED, axis_directions, orientation_warnings

# Sizes left-right, back-front and feet-head: an array's shape tells which axis is which.
SIZES = {"left-right": 4, "back-front": 6, "feet-head": 8}
# Directions of the axes of an array, which has the file's last axis first.
ORIENTATIONS = {"LPS": "SPL", "RAS": "SAR", "LAS": "SAL", "PIR": "RIP", "LIP": "PIL", "IPL": "LPI"}
ALL = (0, 1, 2)


@pytest.fixture(params=ORIENTATIONS)
def image(request, tmp_path):
    """A file in that orientation, and the directions of its array's axes."""
    standard = sitk.Image(tuple(SIZES.values()), sitk.sitkFloat32)
    path = tmp_path / "image.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(standard, request.param), str(path))
    return path, ORIENTATIONS[request.param]


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, SimpleITKIOWithReorient, NibabelIOWithReorient])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_the_axes_are_those_whose_sizes_the_array_has(image, reader, transpose):
    path, letters = image
    voxels, properties = reader().read_images([str(path)])
    found = axis_directions(properties, transpose)
    assert tuple(SIZES[AXES[letter]] for letter in found) == voxels[0].transpose(transpose).shape
    if transpose == (0, 1, 2):
        assert found == (PRETRAINED if "Reorient" in reader.__name__ else letters)


def test_oblique_images_have_the_nearest_axes(tmp_path):
    angle = np.deg2rad(20)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nibabel.save(nibabel.Nifti1Image(np.zeros(tuple(SIZES.values()), np.float32), affine), tmp_path / "a.nii.gz")
    for reader in (SimpleITKIO, NibabelIO):
        _, properties = reader().read_images([str(tmp_path / "a.nii.gz")])
        assert axis_directions(properties, (0, 1, 2)) == PRETRAINED


def test_nothing_is_said_of_axes_as_in_pretraining_or_unknown_ones():
    assert axis_directions({"spacing": [1, 1, 1]}, (0, 1, 2)) is None
    assert orientation_warnings([PRETRAINED, None], (0, 1, 2), ()) == []


def test_the_warning_counts_names_the_axes_and_says_what_to_do():
    (text,) = orientation_warnings([PRETRAINED, "RIP", "RIP", None], (0, 1, 2), ALL)
    assert text.startswith("in 2 of 3 images looked at, the axes that the network sees are left-right, feet-head, back")
    assert "SimpleITKIOWithReorient" in text
    (exchanged,) = orientation_warnings(["ASR"], (1, 0, 2), ALL)
    assert "The plans exchange axes" in exchanged
    assert "SimpleITKIOWithReorient" not in exchanged


def test_flips_are_named_where_the_training_does_not_mirror():
    assert orientation_warnings(["SAL", "IPL"], (0, 1, 2), ALL) == []
    # As nnU-Net's trainers that mirror along some axes only.
    assert orientation_warnings(["SPR"], (0, 1, 2), (0, 1)) == []
    (text,) = orientation_warnings(["SAL", "SAL", PRETRAINED], (0, 1, 2), (0, 1))
    assert text.startswith(
        "2 of 3 images looked at are mirrored compared with pretraining (along left-right), and this"
    )
    assert "SimpleITKIOWithReorient" in text
    assert "or train with mirroring" in text
    (text,) = orientation_warnings(["SPL"], (0, 1, 2), ())
    assert "(along back-front, left-right)" in text
    # Permuted and flipped: both.
    assert len(orientation_warnings(["RIP"], (0, 1, 2), ())) == 2
