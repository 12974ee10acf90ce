import numpy as np
import pytest

from nnunetv2_swinfuse.inference.mask_summary import label_volumes, write_overlay

from .synthetic_models import write_image


@pytest.fixture
def mask(tmp_path):
    voxels = np.zeros((6, 7, 8), np.uint8)
    voxels[1:3, 2:5, 3:7] = 1
    voxels[4, 5, 1:6] = 3
    return write_image(tmp_path / "mask.nii.gz", voxels, (3.0, 2.0, 1.5))


def test_volumes_are_voxels_times_their_size(mask):
    labels = {"background": 0, "liver": 1, "spleen": 2, "tumour": 3, "both": [1, 3], "ignore": 9}
    # 24 and 5 voxels of 9 mm3.
    assert label_volumes(mask, labels) == {"liver": 0.216, "spleen": 0.0, "tumour": 0.045, "both": 0.261}


@pytest.mark.parametrize("constant", [False, True])
def test_the_picture_is_a_png(mask, tmp_path, constant):
    voxels = np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8) * (not constant)
    image = write_image(tmp_path / "image.nii.gz", voxels, (3.0, 2.0, 1.5))
    write_overlay(image, mask, tmp_path / "overlays" / "a.png")
    assert (tmp_path / "overlays" / "a.png").read_bytes().startswith(b"\x89PNG")
