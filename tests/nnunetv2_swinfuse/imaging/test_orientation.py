import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.imaging.grid import Grid
from nnunetv2_swinfuse.imaging.orientation import orientation_code, reoriented

OBLIQUE = (0.9950042, -0.0998334, 0, 0.0998334, 0.9950042, 0, 0, 0, 1)
CODES = ("RAS", "LPS", "LAS", "PIR", "ASL")


@pytest.mark.parametrize(
    ("direction", "code"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), "LPS"),
        ((-1, 0, 0, 0, -1, 0, 0, 0, 1), "RAS"),
        ((0, 0, 1, 1, 0, 0, 0, 1, 0), "PSL"),
        (OBLIQUE, "LPS"),
    ],
    ids=["identity", "RAS", "permuted", "oblique"],
)
def test_directions_have_the_code_of_the_nearest_axes(direction, code):
    assert orientation_code(tuple(map(float, direction))) == code


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("target", CODES)
def test_a_grid_becomes_that_of_the_reoriented_image(code, target, oblique):
    image = sitk.Image([4, 5, 6], sitk.sitkUInt8)
    image.SetSpacing((1.0, 2.0, 3.5))
    image.SetOrigin((-7.0, 11.0, 13.0))
    direction = np.reshape(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(code), (3, 3))
    if oblique:
        direction = np.reshape(OBLIQUE, (3, 3)) @ direction
    image.SetDirection(direction.flatten().tolist())

    def grid(of: sitk.Image) -> Grid:
        return Grid(of.GetSize(), of.GetSpacing(), of.GetOrigin(), of.GetDirection())

    expected = grid(sitk.DICOMOrient(image, target))
    assert reoriented(grid(image), target).differs_from(expected) is None
    assert orientation_code(expected.direction) == target
