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


def test_body_of_a_ct_without_air_inside_is_what_is_denser_than_lung():
    assert np.array_equal(mask_of("CT", ct()), ball(SHAPE))


def thorax() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A CT, its body and its lungs (z, y, x): an ellipse with two lungs that end at the top slice, and a table."""
    z, y, x = np.meshgrid(np.arange(12), np.linspace(-1, 1, 40), np.linspace(-1, 1, 48), indexing="ij")
    body = (y / 0.6) ** 2 + (x / 0.8) ** 2 < 1
    lungs = ((y / 0.35) ** 2 + ((np.abs(x) - 0.4) / 0.22) ** 2 < 1) & (z > 3)
    noise = np.random.default_rng(0).normal(0, 15, body.shape)
    voxels = np.where(body, 40, -1000) + noise
    voxels[lungs] = -820 + noise[lungs]
    voxels[:, 38:39, 8:40] = 200
    return voxels.astype(np.float32), body, lungs


def test_air_inside_the_body_belongs_to_it_and_air_and_table_outside_do_not(tmp_path):
    voxels, body, lungs = thorax()
    mask = mask_of("CT", voxels)
    assert mask[lungs].all()
    assert np.array_equal(mask, body)
    # Without the lungs, the percentile at which nnU-Net clips would be about 0 HU.
    assert np.percentile(voxels[mask], 0.5) < -700
    assert np.percentile(voxels[body & ~lungs], 0.5) > -50


def test_two_legs_are_both_body():
    y, x = np.meshgrid(np.linspace(-1, 1, 30), np.linspace(-1, 1, 40), indexing="ij")
    legs = np.broadcast_to(y**2 + ((np.abs(x) - 0.5) / 0.5) ** 2 < 0.3, (6, 30, 40))
    assert np.array_equal(mask_of("CT", np.where(legs, 40.0, -1000.0)), legs)


def test_a_ct_clipped_above_air_still_has_a_body():
    voxels, body, _ = thorax()
    voxels[:, 38:39] = -1000
    assert np.array_equal(mask_of("CT", np.clip(voxels, -125, 275)), body)


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
