import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import Volume
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.preprocessing.labelled import preprocess_labelled

from ..synthetic_volumes import SHAPE, ball, ct, mr, write

CT = {"mean": 0.0, "std": 100.0, "percentile_00_5": -500.0, "percentile_99_5": 500.0}


def organ():
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:12, 8:14, 6:12] = 2
    return labels


def test_labels_and_body_stay_with_the_image(tmp_path):
    volume = Volume("CT", "CT", write(tmp_path / "ct.nii.gz", ct()))
    result = preprocess_labelled(
        volume, write(tmp_path / "l.nii.gz", organ()), Normalisation((1.0, 1.0, 1.0), CT, False)
    )
    assert np.allclose(result.voxels[ball(SHAPE)].mean(), 0.4, atol=0.02)
    # Both are brought to the same order of axes, so they are compared by where they coincide.
    assert np.array_equal(np.sort(result.labels.ravel()), np.sort(organ().ravel()))
    assert result.body.sum() == ball(SHAPE).sum()
    assert (result.voxels[result.labels == 2] > -1).all()
    assert result.padding == pytest.approx(-5.0)


def test_labels_are_resampled_with_the_image(tmp_path):
    volume = Volume("MR", "MR", write(tmp_path / "mr.nii.gz", mr()))
    label = write(tmp_path / "l.nii.gz", organ())
    result = preprocess_labelled(volume, label, Normalisation((2.0, 1.0, 1.0), {}, False))
    assert result.voxels.shape == result.labels.shape == result.body.shape == (9, 22, 20)
    assert set(np.unique(result.labels)) == {0, 2}
    assert (result.labels == 2).sum() == pytest.approx((organ() == 2).sum() / 2, rel=0.1)


def test_bad_labels_and_ct_without_a_ct_normalisation_are_refused(tmp_path):
    volume = Volume("CT", "CT", write(tmp_path / "ct.nii.gz", ct()))
    label = write(tmp_path / "l.nii.gz", organ())
    with pytest.raises(InputError, match="collection without CT"):
        preprocess_labelled(volume, label, Normalisation((1.0, 1.0, 1.0), {}, False))
    for bad in (organ()[:-1], np.full(SHAPE, 1.5, np.float32), np.full(SHAPE, 200, np.uint8)):
        path = write(tmp_path / "bad.nii.gz", bad)
        with pytest.raises(InputError, match=r"bad\.nii\.gz"):
            preprocess_labelled(volume, path, Normalisation((1.0, 1.0, 1.0), CT, False))


def test_labels_with_another_header_are_refused(tmp_path):
    volume = Volume("MR", "MR", write(tmp_path / "mr.nii.gz", mr()))
    # The same array of voxels, but by its header x and y run the other way.
    label = tmp_path / "l.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(organ()), str(label))
    with pytest.raises(InputError, match=r"mr\.nii\.gz and .*l\.nii\.gz: different grids"):
        preprocess_labelled(volume, label, Normalisation((1.0, 1.0, 1.0), {}, False))
