import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunetv2_swinfuse.demo.volumes import LABELS, DemoError, make_patient, write_nnunet_raw, write_synthrad

pytestmark = pytest.mark.slow


def test_both_images_show_the_same_shapes_with_contrasts_of_their_own():
    patient = make_patient(3)
    assert patient.ct.shape == patient.mr.shape == patient.labels.shape == patient.mask.shape
    assert set(np.unique(patient.labels)) == set(LABELS.values())
    outside = patient.mask == 0
    assert patient.ct[outside].mean() < -900
    assert patient.mr[outside].mean() < 0.2 * patient.mr[~outside].mean()
    ventricles, stem = patient.labels == LABELS["ventricles"], patient.labels == LABELS["brainstem"]
    assert patient.mr[ventricles].mean() < 0.6 * patient.mr[stem].mean()
    # Bone is bright in CT and dark in MR: no monotone curve turns one image into the other.
    bone = patient.ct > 600
    assert patient.mr[bone].mean() < patient.mr[stem].mean()


def test_heads_depend_only_on_the_seed_and_differ():
    first, repeated, other = make_patient(1), make_patient(1), make_patient(2)
    assert np.array_equal(first.ct, repeated.ct)
    assert (first.labels != other.labels).mean() > 0.005


@pytest.mark.parametrize("seed", range(1000, 1010))
def test_the_brainstem_can_be_told_from_what_surrounds_it(seed):
    patient = make_patient(seed)
    stem = patient.labels == LABELS["brainstem"]
    assert stem.sum() > 300
    # Fluid around its lower half, as in the cisterns: much darker in the MR, and not labelled.
    lower = np.zeros_like(stem)
    lower[: int(np.median(np.nonzero(stem)[0]))] = True
    around = ndimage.binary_dilation(stem, iterations=2) & ~ndimage.binary_dilation(stem) & lower
    around &= patient.mask > 0
    assert np.median(patient.mr[around]) < 0.7 * patient.mr[stem].mean()
    assert (patient.labels[around] == LABELS["ventricles"]).mean() < 0.05


def test_collections_are_written_in_synthrad_layout_and_never_over_another(tmp_path):
    write_synthrad(tmp_path / "SynthRAD", 2)
    folder = tmp_path / "SynthRAD" / "Task1" / "brain" / "1BA002"
    ct, mr, mask = (sitk.ReadImage(str(folder / f"{name}.nii.gz")) for name in ("ct", "mr", "mask"))
    assert ct.GetSize() == mr.GetSize() == mask.GetSize()
    assert ct.GetSpacing() == mr.GetSpacing() == pytest.approx((4.0, 4.0, 3.6))
    with pytest.raises(DemoError, match="never overwritten"):
        write_synthrad(tmp_path / "SynthRAD", 2)


def test_datasets_are_what_nnunet_expects(tmp_path):
    folder = write_nnunet_raw(tmp_path, 501, "Synthetic", "CT", train_cases=2, test_cases=1)
    assert folder.name == "Dataset501_Synthetic"
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["numTraining"] == 2
    assert dataset["channel_names"] == {"0": "CT"}
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == ["case_000_0000.nii.gz", "case_001_0000.nii.gz"]
    assert [p.name for p in (folder / "labelsTs").iterdir()] == ["case_002.nii.gz"]
    with pytest.raises(DemoError, match="never overwritten"):
        write_nnunet_raw(tmp_path, 501, "Synthetic")
