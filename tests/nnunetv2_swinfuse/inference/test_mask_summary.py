import numpy as np

from nnunetv2_swinfuse.inference.mask_summary import MaskSummary, summarise_mask

from .synthetic_models import write_image

LABELS = {"background": 0, "liver": 1, "spleen": 2, "tumour": 3, "both": [1, 3], "ignore": 9}


def test_volumes_are_voxels_times_their_size(tmp_path):
    voxels = np.zeros((6, 7, 8), np.uint8)
    voxels[1:3, 2:5, 3:7] = 1
    voxels[4, 5, 1:6] = 3
    mask = write_image(tmp_path / "mask.nii.gz", voxels, (3.0, 2.0, 1.5))
    # 24 and 5 voxels of 9 mm3.
    volumes = {"liver": 0.216, "spleen": 0.0, "tumour": 0.045, "both": 0.261}
    assert summarise_mask(mask, LABELS) == MaskSummary(volumes, empty=False)


def test_a_structure_of_less_than_a_microlitre_is_not_empty(tmp_path):
    voxels = np.zeros((20, 20, 20), np.uint8)
    voxels[5:12, 5:12, 5:12] = 1
    mask = write_image(tmp_path / "stapes.nii.gz", voxels, (0.1, 0.1, 0.1))
    # 343 voxels of 0.001 mm3.
    assert summarise_mask(mask, {"background": 0, "stapes": 1}) == MaskSummary({"stapes": 0.000343}, empty=False)


def test_a_mask_without_a_label_is_empty(tmp_path):
    voxels = np.zeros((6, 7, 8), np.uint8)
    assert summarise_mask(write_image(tmp_path / "mask.nii.gz", voxels), LABELS).empty
    voxels[0, 0, 0] = 9
    assert summarise_mask(write_image(tmp_path / "ignore.nii.gz", voxels), LABELS).empty
