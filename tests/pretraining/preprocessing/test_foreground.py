import numpy as np
import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import Volume
from pretraining.preprocessing.foreground import body_mask, read_volume

from ..synthetic_volumes import SHAPE, ball, ct, mr, shorten, write


def test_voxels_and_spacing_are_z_y_x(tmp_path):
    path = write(tmp_path / "a.nii.gz", ct(), spacing=(3.0, 2.0, 1.5))
    data, properties = read_volume(path)
    assert data.dtype == np.float32
    assert np.array_equal(data[0], ct())
    assert properties["spacing"] == [1.5, 2.0, 3.0]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_a_truncated_volume_is_named_in_every_format(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", mr())
    shorten(path)
    with pytest.raises(InputError, match=rf"a{ending}: .*truncated.*replace or remove it"):
        read_volume(path)


def test_a_missing_volume_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.nii\.gz: missing"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_number_are_counted(tmp_path, value, ending):
    voxels = mr()
    voxels[3, 4, 5:7] = value
    with pytest.raises(InputError, match=r"a\..*: 2 NaN or infinite voxel"):
        read_volume(write(tmp_path / f"a{ending}", voxels))


@pytest.mark.parametrize("value", [0, -1024])
def test_a_volume_of_one_value_is_empty(tmp_path, value):
    with pytest.raises(InputError, match=f"empty, every voxel is {value}"):
        read_volume(write(tmp_path / "a.nii.gz", np.full(SHAPE, value, np.int16)))


def mask_of(domain, voxels, mask=None, path=None):
    volume = Volume(domain, domain, path, mask)
    return body_mask(volume, voxels[None].astype(np.float32))[0].astype(bool)


def test_body_of_a_ct_is_what_is_denser_than_lung():
    assert np.array_equal(mask_of("CT", ct()), ball(SHAPE))


def test_body_of_an_mr_and_of_a_ct_without_hu_follow_their_histograms():
    assert np.array_equal(mask_of("MR", mr()), ball(SHAPE))
    assert np.array_equal(mask_of("CT", ct() + 1024), ball(SHAPE))


def test_a_mask_file_comes_first_and_may_mark_everything(tmp_path):
    everything = write(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8))
    assert mask_of("CT", ct(), everything).all()


def test_what_anonymisation_removed_is_no_body(tmp_path):
    face = np.zeros(SHAPE, np.uint8)
    face[:, :11] = 1
    removed = write(tmp_path / "face.nii.gz", face)
    everything = write(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8))
    voxels = ct()[None].astype(np.float32)
    assert np.array_equal(body_mask(Volume("CT", "CT", tmp_path, None, removed), voxels)[0], ball(SHAPE) * (face == 0))
    assert np.array_equal(body_mask(Volume("CT", "CT", tmp_path, everything, removed), voxels)[0], face == 0)
    with pytest.raises(InputError, match="marks the whole body as removed"):
        body_mask(Volume("CT", "CT", tmp_path, everything, everything), voxels)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros(SHAPE, np.uint8), "marks no voxel"),
        (np.ones((5, 5, 5), np.uint8), r"size \(5, 5, 5\) \(z, y, x\), its volume ct.nii.gz has \(18, 22, 20\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(tmp_path, mask, words):
    path = write(tmp_path / "mask.nii.gz", mask)
    with pytest.raises(InputError, match=rf"mask\.nii\.gz: {words}"):
        mask_of("CT", ct(), path, tmp_path / "ct.nii.gz")
