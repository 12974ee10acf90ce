"""Arrays whose shares are known in closed form."""

from pathlib import Path

import numpy as np
import pytest

from nnunetv2_swinfuse.imaging.grid import Grid
from nnunetv2_swinfuse.imaging.volume import VoxelVolume
from nnunetv2_swinfuse.inference import intensity_checks
from nnunetv2_swinfuse.inference.intensity_checks import (
    check_content,
    check_hounsfield,
    check_label_map,
    check_modality,
    check_normalised,
    hounsfield_reason,
    modality_reason,
    profile,
    training_scale,
)
from nnunetv2_swinfuse.inference.model_description import Channel

STATISTICS = {"min": -200.0, "percentile_00_5": -90.0, "median": 50.0, "percentile_99_5": 120.0, "max": 300.0}
CT = Channel("CT", "CT", False, STATISTICS)
MR = Channel("T1", "MR", False, {**STATISTICS, "min": 0.0, "percentile_00_5": 5.0, "max": 900.0})


def of(values, integer=True):
    voxels = np.resize(np.asarray(values, np.float32), (10, 10, 10))
    return profile(VoxelVolume(Path("a"), voxels, Grid((10,) * 3, (1.0,) * 3, (0.0,) * 3, (1.0,) * 9), integer))


def severity(finding):
    return None if finding is None else finding.severity.name


def test_a_ramp_in_numbers():
    image = of(np.arange(-500, 500))
    assert (image.minimum, image.maximum, image.distinct, image.commonest) == (-500, 499, 1000, 0.001)
    # -500..-21; -200..300; none above 700.
    assert (image.below, image.soft_tissue, image.bright) == pytest.approx((0.48, 0.501, 0.0))
    assert image.deviation == pytest.approx(np.sqrt((1000**2 - 1) / 12))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_sample_of_a_large_volume_is_no_single_slice(axis, monkeypatch):
    monkeypatch.setattr(intensity_checks, "_SAMPLE", 1000)
    # 16 voxels for each of the sample: as many as a row has.
    slices = np.broadcast_to(np.arange(-8, 8, dtype=np.float32), (10, 100, 16))
    voxels = np.moveaxis(slices, 2, axis)
    image = profile(VoxelVolume(Path("a"), voxels, Grid((1,) * 3, (1.0,) * 3, (0.0,) * 3, (1.0,) * 9), True))
    assert image.distinct == 16
    # A share of 1/16; four standard errors of a thousand voxels.
    assert image.commonest == pytest.approx(1 / 16, abs=0.03)
    assert image.deviation == pytest.approx(np.sqrt((16**2 - 1) / 12), abs=0.3)
    again = profile(VoxelVolume(Path("a"), voxels, Grid((1,) * 3, (1.0,) * 3, (0.0,) * 3, (1.0,) * 9), True))
    assert image == again


def test_content():
    assert severity(check_content(of([7]))) == "REFUSED"
    assert severity(check_content(of([0] * 999 + [1]))) == "REFUSED"
    assert check_content(of([0] * 998 + [1, 2])) is None


def test_label_maps():
    assert severity(check_label_map(of(np.arange(24)))) == "REFUSED"
    assert check_label_map(of(np.arange(25))) is None
    assert check_label_map(of(np.arange(-3, 3))) is None
    assert check_label_map(of([0.25, 0.5], integer=False)) is None


@pytest.mark.parametrize(
    ("share", "ct", "mr"), [(0, "REFUSED", None), (0.02, "REFUSED", None), (0.03, "REFUSED", "REFUSED"),
                            (0.05, None, "REFUSED"), (0.5, None, "REFUSED")]
)  # fmt: skip
def test_modality_by_the_share_of_negative_voxels(share, ct, mr):
    negative = round(1000 * share)
    image = of([-100] * negative + list(range(100, 1100 - negative)))
    assert severity(check_modality(image, CT)) == ct
    assert severity(check_modality(image, MR)) == mr


def test_modalities_that_cannot_be_told():
    assert modality_reason(CT) is None
    assert "neither CT nor MR" in modality_reason(Channel("PET", None, False, STATISTICS))
    shifted = Channel("CT", "CT", False, {**STATISTICS, "percentile_00_5": 900.0})
    assert "Hounsfield" in modality_reason(shifted)
    assert check_modality(of(np.arange(1000)), shifted) is None
    negative = Channel("phase", "MR", False, {**STATISTICS, "min": -500.0})
    assert check_modality(of(np.arange(-500, 500)), negative) is None


@pytest.mark.parametrize(
    ("values", "integer", "expected"),
    [
        (np.arange(-500, 500), True, None),
        ([-1000] * 995 + [0] * 5, True, "REFUSED"),
        ([-1000] * 400 + [50] * 390 + [900] * 210, True, "REFUSED"),
        ([-1000] * 400 + [50] * 401 + [900] * 199, True, None),
        ([-5000] + [0] * 999, True, "WARNING"),
        (np.linspace(-2, 3, 1000), False, "REFUSED"),
    ],
    ids=["ramp", "no soft tissue", "bright", "some bone", "beyond the range", "z-scored"],
)
def test_hounsfield_units(values, integer, expected):
    assert severity(check_hounsfield(of(values, integer), CT)) == expected
    assert check_hounsfield(of(values, integer), MR) is None


def trained_on(low, middle, high):
    """A CT channel whose labelled voxels lie between two values."""
    known = {"min": low, "percentile_00_5": low + 0.01 * (high - low), "median": middle,
             "percentile_99_5": high - 0.01 * (high - low), "max": high}  # fmt: skip
    return Channel("CT", "CT", False, known)


# An abdomen of air, fat, organs and some bone; the same as scanners store it, scaled to 0..1, and windowed to 0..255.
BODY = np.array([-1000] * 400 + [-100] * 200 + [50] * 370 + [900] * 30, float)
IMAGES = {
    "hounsfield": (BODY, True),
    "stored": (BODY + 1024, True),
    "scaled": ((BODY + 1000) / 1900, False),
    "windowed": (np.clip((BODY + 160) * 255 / 400, 0, 255).round(), True),
}


@pytest.mark.parametrize(
    ("channel", "scale", "refused", "warned"),
    [
        (CT, "hounsfield", {"stored", "scaled", "windowed"}, set()),
        (trained_on(0.1, 0.55, 0.7), "normalised", {"hounsfield", "stored", "windowed"}, set()),
        (trained_on(-1.0, 0.5, 3.0), "normalised", {"hounsfield", "stored", "windowed"}, set()),
        (trained_on(880.0, 1074.0, 1200.0), "stored", {"scaled"}, {"hounsfield"}),
        # Lungs as stored, bone in Hounsfield units, organs windowed to 0..255: not to be told apart.
        (trained_on(10.0, 200.0, 1100.0), "unknown", {"stored", "scaled", "windowed"}, set()),
    ],
)
def test_a_ct_in_another_unit_than_the_training_ct(channel, scale, refused, warned):
    assert training_scale(channel) == scale
    found = {"REFUSED": set(), "WARNING": set()}
    for name, (values, integer) in IMAGES.items():
        image = of(values, integer)
        for check in (check_modality, check_hounsfield, check_normalised):
            if finding := check(image, channel):
                found[finding.severity.name].add(name)
    assert found == {"REFUSED": refused, "WARNING": warned}


def test_what_is_not_known_of_the_training_ct_is_said():
    unknown = trained_on(10.0, 200.0, 1100.0)
    assert "between 10 and 1100, none below -20" in hounsfield_reason(unknown)
    remedy = check_modality(of(IMAGES["stored"][0]), unknown).remedy
    assert (
        "If the training CT was in another unit (its labelled voxels lie between 10 and 1100), accept this." in remedy
    )
    assert check_modality(of(IMAGES["stored"][0]), CT).remedy == "Give a CT in Hounsfield units."
    normalised = trained_on(0.1, 0.55, 0.7)
    assert hounsfield_reason(normalised) == modality_reason(normalised)
    assert "was not in Hounsfield units" in modality_reason(normalised)
    assert hounsfield_reason(trained_on(880.0, 1074.0, 1200.0)) is None
    assert hounsfield_reason(MR) is None


def test_normalised_images():
    scored, scaled = of(np.linspace(-2, 3, 1000), False), of(np.linspace(0, 1, 1000), False)
    assert "z-score" in scored.normalised
    assert "0..1" in scaled.normalised
    assert of(np.linspace(0, 900, 1000), False).normalised is None
    assert severity(check_normalised(scored, MR)) == "WARNING"
    assert severity(check_normalised(scored, Channel("T1", "MR", True, MR.intensities))) == "REFUSED"
    assert check_normalised(scored, Channel("T1", "MR", False, {**STATISTICS, "min": -2.0, "max": 4.0})) is None
