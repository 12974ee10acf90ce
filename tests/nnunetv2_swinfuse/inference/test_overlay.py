"""Pictures of a phantom whose voxels say where in the patient they are."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.inference.overlay import central_sections, write_overlay
from nnunetv2_swinfuse.inference.training_images import CODES

from .synthetic_models import write_image

# Voxels and their sizes in mm, to the left, to the back and upwards.
SIDES, STEPS = (4, 5, 6), (1.0, 2.0, 3.0)
# The only voxel of the mask.
MARKED = (1, 3, 4)


def phantom(code: str) -> tuple[sitk.Image, sitk.Image, tuple[int, ...]]:
    """Image and mask, stored in the order of a code, and the index (x, y, z) of the marked voxel in them.

    A voxel that is L voxels to the left, P to the back and S upwards of the corner has the intensity 100 S + 10 P + L.
    Computed from the direction matrix, which says where every index points: no reorientation of a library.
    """
    direction = np.reshape(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(code), (3, 3))
    anatomical = [int(np.abs(column).argmax()) for column in direction.T]
    grows = [direction[side, axis] > 0 for axis, side in enumerate(anatomical)]
    size = [SIDES[side] for side in anatomical]
    voxels = np.zeros(size[::-1], np.int16)
    labels = np.zeros(size[::-1], np.uint8)
    marked = None
    for index in np.ndindex(*size):
        body = [0, 0, 0]
        for axis, side in enumerate(anatomical):
            body[side] = index[axis] if grows[axis] else size[axis] - 1 - index[axis]
        voxels[index[::-1]] = 100 * body[2] + 10 * body[1] + body[0]
        if tuple(body) == MARKED:
            labels[index[::-1]] = 1
            marked = index
    images = []
    for array in (voxels, labels):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing([STEPS[side] for side in anatomical])
        image.SetDirection(direction.ravel().tolist())
        images.append(image)
    return *images, marked


@pytest.mark.parametrize("code", sorted(CODES))
def test_superior_is_up_and_the_patients_right_is_on_the_left(code):
    image, mask, marked = phantom(code)
    axial, coronal, sagittal = central_sections(image, mask)
    left, back, up = (np.arange(side) for side in SIDES)
    # From the patient's right to the left, from the front down to the back.
    assert (axial.image == 100 * MARKED[2] + 10 * back[:, None] + left).all()
    # From the right to the left, from the top down.
    assert (coronal.image == 100 * up[::-1, None] + 10 * MARKED[1] + left).all()
    # From the front to the back, from the top down.
    assert (sagittal.image == 100 * up[::-1, None] + 10 * back + MARKED[0]).all()
    number = 100 * MARKED[2] + 10 * MARKED[1] + MARKED[0]
    for section in (axial, coronal, sagittal):
        assert section.image[section.mask == 1].tolist() == [number]
        axis, index = section.position.split(" = ")
        assert marked["xyz".index(axis)] == int(index)
    assert [axial.aspect, coronal.aspect, sagittal.aspect] == [2.0, 3.0, 1.5]


def test_the_sides_are_named():
    names = {
        section.view: (section.left, section.right, section.top, section.bottom)
        for section in central_sections(*phantom("LPS")[:2])
    }
    assert names == {
        "axial": ("R", "L", "A", "P"),
        "coronal": ("R", "L", "S", "I"),
        "sagittal": ("A", "P", "S", "I"),
    }


def test_an_oblique_image_has_the_nearest_views():
    image, mask, _ = phantom("RAS")
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    straight = central_sections(image, mask)
    for volume in (image, mask):
        volume.SetDirection((turn @ np.reshape(volume.GetDirection(), (3, 3))).ravel().tolist())
    for oblique, expected in zip(central_sections(image, mask), straight, strict=True):
        assert (oblique.image == expected.image).all()


def test_an_empty_mask_shows_the_middle():
    image, mask, _ = phantom("LPS")
    assert [section.position for section in central_sections(image, mask * 0)] == ["z = 3", "y = 2", "x = 2"]


def test_a_mask_of_another_grid_is_no_overlay():
    image, mask, _ = phantom("LPS")
    mask.SetOrigin((0.2, 0, 0))
    assert central_sections(image, mask)
    mask.SetOrigin((0.5, 0, 0))
    with pytest.raises(ValueError, match="not where its image is"):
        central_sections(image, mask)
    with pytest.raises(ValueError, match="voxels"):
        central_sections(image, phantom("SAR")[1])


@pytest.mark.parametrize("constant", [False, True])
def test_the_picture_is_a_png(tmp_path, constant):
    voxels = np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8) * (not constant)
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 2:5, 3:7] = 1
    image = write_image(tmp_path / "image.nii.gz", voxels, (3.0, 2.0, 1.5))
    mask = write_image(tmp_path / "mask.nii.gz", labels, (3.0, 2.0, 1.5))
    write_overlay(image, mask, tmp_path / "overlays" / "a.png")
    assert (tmp_path / "overlays" / "a.png").read_bytes().startswith(b"\x89PNG")
