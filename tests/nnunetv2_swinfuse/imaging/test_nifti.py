import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.nifti import check_nifti
from tests.pretraining.synthetic_volumes import ct, mr, shorten, write


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("voxels", [ct(), mr(), ct().astype(np.uint8)], ids=["int16", "float32", "uint8"])
def test_whole_files_pass_and_cut_ones_are_named(tmp_path, ending, voxels):
    path = write(tmp_path / f"a{ending}", voxels)
    check_nifti(path)
    shorten(path, 0.99)
    # The reason for this module: ITK does not notice.
    assert sitk.ReadImage(str(path)).GetSize() == voxels.shape[::-1]
    with pytest.raises(InputError, match=rf"a{ending}: truncated"):
        check_nifti(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_voxels_that_are_no_number_are_counted(tmp_path, value, kind):
    voxels = mr().astype(kind)
    voxels[3, 4, 5:7] = value
    path = write(tmp_path / "a.nii.gz", voxels)
    assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).all()
    with pytest.raises(InputError, match=r"a\.nii\.gz: 2 NaN or infinite voxel"):
        check_nifti(path)


def test_a_damaged_stream_is_found(tmp_path):
    path = write(tmp_path / "a.nii.gz", ct())
    content = bytearray(path.read_bytes())
    content[-6] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated or damaged"):
        check_nifti(path)


def test_a_whole_stream_of_half_a_volume_is_found(tmp_path):
    path = write(tmp_path / "a.nii.gz", mr())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:5000]))
    with pytest.raises(InputError, match="truncated, 4648 of 31680 bytes"):
        check_nifti(path)


def test_several_gzip_members_are_one_file(tmp_path):
    path = write(tmp_path / "a.nii.gz", mr())
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:4000]) + gzip.compress(content[4000:]))
    check_nifti(path)


def test_other_formats_are_left_to_itk(tmp_path):
    path = write(tmp_path / "a.mha", mr())
    shorten(path)
    check_nifti(path)
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(path))
