from pathlib import Path

import numpy as np
import pytest

from pretraining.collections.collection import Volume
from pretraining.preprocessing.fingerprint import (
    SAMPLES_PER_VOLUME,
    Normalisation,
    VolumeFingerprint,
    fingerprint_volume,
    intensity_properties,
    samples_per_volume,
    unit_warning,
)

from ..nnunet_plans import CT
from ..synthetic_volumes import SHAPE, ball, ct, mr, write


def test_ct_intensities_come_only_from_the_body(tmp_path):
    volume = Volume("CT", "CT", write(tmp_path / "a.nii.gz", ct()))
    fingerprint = fingerprint_volume(volume, tmp_path)
    assert len(fingerprint.intensities) == min(SAMPLES_PER_VOLUME, ball(SHAPE).sum())
    assert fingerprint.intensities.min() > -200


@pytest.mark.parametrize(("border", "share"), [(0, 1.0), (4, (10 * 14 * 12) / (18 * 22 * 20))])
def test_the_nonzero_share_of_an_mr_is_what_cropping_leaves(tmp_path, border, share):
    voxels = np.zeros(SHAPE, np.float32)
    inside = tuple(slice(border, size - border) for size in SHAPE)
    voxels[inside] = mr()[inside]
    fingerprint = fingerprint_volume(Volume("MR", "MR", write(tmp_path / "a.nii.gz", voxels)), tmp_path)
    assert fingerprint.nonzero_share == pytest.approx(share)


def test_a_volume_is_read_once_and_again_when_it_was_replaced(tmp_path, monkeypatch):
    read = []
    from pretraining.preprocessing import fingerprint as module

    original = module.read_volume
    monkeypatch.setattr(module, "read_volume", lambda path: read.append(path) or original(path))
    volume = Volume("CT", "CT", write(tmp_path / "a.nii.gz", ct()))
    first, second = (fingerprint_volume(volume, tmp_path) for _ in range(2))
    assert len(read) == 1
    assert np.array_equal(first.intensities, second.intensities)
    write(tmp_path / "a.nii.gz", ct(1) + 100)
    assert fingerprint_volume(volume, tmp_path).intensities.mean() > first.intensities.mean() + 50
    assert len(read) == 2


def test_intensity_properties_are_those_of_nnunet():
    values = np.arange(1001, dtype=np.float32)
    properties = intensity_properties([values[:400], values[400:]])
    assert properties == {
        "mean": 500.0, "median": 500.0, "std": pytest.approx(values.std()), "min": 0.0, "max": 1000.0,
        "percentile_00_5": pytest.approx(5.0), "percentile_99_5": pytest.approx(995.0),
    }  # fmt: skip


@pytest.mark.parametrize(("shares", "mask"), [((0.2, 0.6, 0.9), True), ((0.2, 0.8, 0.9), False)])
def test_mr_is_normalised_inside_its_mask_by_nnunets_rule(tmp_path, shares, mask):
    volumes = [Volume("CT", "CT", tmp_path), *(Volume("MR", "MR", tmp_path) for _ in shares)]
    fingerprints = [VolumeFingerprint(np.arange(9.0), 1.0), *(VolumeFingerprint(np.empty(0), s) for s in shares)]
    normalisation = Normalisation.of(volumes, fingerprints, (1.0, 1.0, 1.0))
    assert normalisation.mr_use_mask is mask
    configuration = normalisation.plans(["CT", "MR"])["configurations"]["swinfuse"]
    assert configuration["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    assert configuration["use_mask_for_norm"] == [False, mask]


def test_a_collection_without_ct_has_no_ct_intensities(tmp_path):
    for given in (None, CT):
        normalisation = Normalisation.of(
            [Volume("MR", "MR", tmp_path)], [VolumeFingerprint(np.empty(0), 1.0)], (1.0, 1.0, 1.0), given
        )
        assert (normalisation.ct, normalisation.mr_use_mask) == ({}, False)


def test_samples_do_not_grow_with_the_number_of_volumes(tmp_path):
    for folder in ("memory", "other"):
        (tmp_path / folder).mkdir()
    volume = Volume("CT", "CT", write(tmp_path / "a.nii.gz", ct()))
    assert samples_per_volume([volume] * 10) == SAMPLES_PER_VOLUME
    assert samples_per_volume([volume] * 100_000) == 100
    whole = fingerprint_volume(volume, tmp_path / "memory").intensities
    fewer = fingerprint_volume(volume, tmp_path / "memory", samples=50).intensities
    assert np.array_equal(fewer, whole[:50])
    assert np.array_equal(fingerprint_volume(volume, tmp_path / "other", samples=50).intensities, fewer)


def test_cts_in_different_units_are_named():
    volumes = [Volume("CT", "CT", Path(f"{name}.mha")) for name in "abc"] + [Volume("MR", "MR", Path("m.mha"))]
    hounsfield, unsigned = (np.random.default_rng(0).normal(mean, 100, 1000) for mean in (40, 1064))
    mr = VolumeFingerprint(np.empty(0, np.float32), 1.0)

    def warning(*of_ct, intensities=None):
        return unit_warning(volumes, [*(VolumeFingerprint(values, 1.0) for values in of_ct), mr], intensities)

    assert warning(hounsfield, hounsfield, hounsfield) is None
    # All alike: they are normalised with their own intensities.
    assert warning(unsigned, unsigned, unsigned) is None
    assert "1 of 3 CT volumes, such as b.mha," in warning(hounsfield, unsigned, hounsfield)
    assert "--own_normalisation" in warning(unsigned, unsigned, unsigned, intensities={"mean": 40.0})
