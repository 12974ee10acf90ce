"""A mask of the first stage that is sound, and one of each kind that is not."""

import gzip
import json

import numpy as np
import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.cases import RECORDS
from nnunetv2_swinfuse.inference.first_stage_mask import check_first_stage_mask
from nnunetv2_swinfuse.inference.model_files import file_hash

from .synthetic_models import SHAPE, ct_voxels, write_image

LABELS = {"background": 0, "whole": [1, 2], "core": [2]}


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "a_0000.nii.gz", ct_voxels())


def mask_voxels():
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[4:9, 5:12, 6:15] = 1
    voxels[5:7, 6:9, 8:11] = 2
    return voxels


def check(mask, image, hashes=("x",)):
    check_first_stage_mask(mask, "a", image, LABELS, hashes)


def test_a_sound_mask(tmp_path, image):
    check(write_image(tmp_path / "first" / "a.nii.gz", mask_voxels()), image)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_cut_mask_that_itk_reads_is_refused(tmp_path, image, ending):
    mask = write_image(tmp_path / "first" / f"a{ending}", mask_voxels())
    content = mask.read_bytes()
    if ending == ".nii":
        mask.write_bytes(content[: 352 + 2000])
    else:
        mask.write_bytes(gzip.compress(gzip.decompress(content)[: 352 + 2000]))
    with pytest.raises(InputError, match="truncated"):
        check(mask, image)


def test_a_mask_on_another_grid_is_refused(tmp_path, image):
    mask = write_image(tmp_path / "first" / "a.nii.gz", mask_voxels(), orientation="RAS")
    with pytest.raises(InputError, match=r"not on the grid of .*a_0000.nii.gz .direction"):
        check(mask, image)


def test_a_mask_of_other_labels_is_refused(tmp_path, image):
    mask = write_image(tmp_path / "first" / "a.nii.gz", 3 * mask_voxels())
    with pytest.raises(InputError, match=r"values \[3.0, 6.0\]; the model's labels are \[0, 1, 2\]"):
        check(mask, image)


def test_a_mask_of_another_image_is_refused_by_its_record(tmp_path, image):
    mask = write_image(tmp_path / "first" / "a.nii.gz", mask_voxels())
    record = mask.parent / RECORDS / "a.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"mask_sha256": file_hash(mask), "input_sha256": ["x"]}))
    check(mask, image)
    with pytest.raises(InputError, match=r"predicted from another image than .*a_0000.nii.gz"):
        check(mask, image, ("y",))
    # Corrected by hand since: its record says nothing of it.
    write_image(mask, np.roll(mask_voxels(), 1, 0))
    check(mask, image, ("y",))
