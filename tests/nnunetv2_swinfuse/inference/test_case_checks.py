"""Every check: what passes, what is refused by which check, and that nothing passes because a check broke."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_swinfuse.inference import case_checks, geometry_checks
from nnunetv2_swinfuse.inference.case_checks import CHECKS, NEVER_ACCEPTED, check_case
from nnunetv2_swinfuse.inference.cases import find_cases
from nnunetv2_swinfuse.inference.findings import CaseFindings, Severity
from nnunetv2_swinfuse.inference.model_description import describe_model

from .synthetic_models import SHAPE, SPACING, ct_voxels, mr_voxels, write_image, write_model


def check_one(path: Path, model: Path, accepted: tuple[str, ...] = ()) -> CaseFindings:
    described = describe_model(model)
    (case,) = find_cases([path], described.file_ending, len(described.channels))
    return check_case(case, described, accepted)


def outcome(result: CaseFindings) -> dict[str, str]:
    return {finding.check: finding.severity.name for finding in result.findings}


@pytest.mark.parametrize("domain", ["CT", "MR"])
def test_sound_images_pass_all_checks(tmp_path, domain):
    model = write_model(tmp_path / "model", (domain,))
    image = write_image(tmp_path / "a_0000.nii.gz", ct_voxels() if domain == "CT" else mr_voxels())
    result = check_one(image, model)
    assert outcome(result) == {}
    assert not result.not_performed
    other = "hounsfield" if domain == "MR" else "normalised"
    assert set(result.performed) == set(CHECKS) - {"internal", other}


CASES = {
    "constant": (np.zeros(SHAPE, np.int16), {}, {"content": "REFUSED"}),
    "one bright voxel": (np.eye(1, 20 * 24 * 28).reshape(SHAPE).astype(np.int16), {}, {"content": "REFUSED"}),
    "slices": (ct_voxels()[:3], {}, {"size": "REFUSED", "field_of_view": "REFUSED"}),
    "mirrored": (ct_voxels(), {"orientation": "RPS"}, {"orientation": "REFUSED"}),
    "axes swapped": (ct_voxels(), {"orientation": "PLS"}, {"orientation": "REFUSED"}),
    "metres": (ct_voxels(), {"spacing": (0.003, 0.002, 0.0015)}, {"spacing": "REFUSED", "field_of_view": "REFUSED"}),
    "spacing lost": (ct_voxels(shape=(8, 24, 28)), {"spacing": (1, 1, 1)}, {"field_of_view": "REFUSED"}),
    "thin slices": (ct_voxels(shape=(72, 24, 28)), {"spacing": (0.9, 2, 1.5)}, {"spacing": "WARNING"}),
    "coarse": (ct_voxels(), {"spacing": (6, 2, 1.5)}, {"spacing": "WARNING"}),
    "very coarse": (ct_voxels(), {"spacing": (12, 2, 1.5)}, {"spacing": "REFUSED", "field_of_view": "WARNING"}),
    "half of it": (ct_voxels(shape=(9, 24, 28)), {}, {"field_of_view": "WARNING"}),
    "whole body": (ct_voxels(shape=(60, 24, 28)), {}, {"field_of_view": "WARNING"}),
    "an MR": (mr_voxels(), {}, {"modality": "REFUSED"}),
    "no rescale intercept": (
        ct_voxels() + np.int16(1024), {}, {"modality": "REFUSED", "hounsfield": "REFUSED"},
    ),
    "z-scored": ((ct_voxels() + 600.0) / 450, {}, {"hounsfield": "REFUSED"}),
    "scaled tenfold": (ct_voxels() * 10.0 - 3e3, {}, {"hounsfield": "REFUSED"}),
    "inverted": (-ct_voxels(), {}, {"hounsfield": "REFUSED"}),
    "every other slice lost": (ct_voxels() * (np.arange(20)[:, None, None] % 2), {}, {"blank_slices": "REFUSED"}),
    "a segmentation": ((ct_voxels() > 0).astype(np.uint8), {}, {"label_map": "REFUSED"}),
    "bad metal": (np.where(ct_voxels() > 70, 60000.0, ct_voxels()), {}, {"hounsfield": "WARNING"}),
}  # fmt: skip


def test_what_cannot_be_checked_for_ct_in_an_unknown_unit_is_named(tmp_path):
    windowed = {"min": 0.0, "percentile_00_5": 20.0, "median": 130.0, "percentile_99_5": 200.0, "max": 255.0}
    model = write_model(tmp_path / "model", intensities=windowed)
    result = check_one(write_image(tmp_path / "a_0000.nii.gz", ct_voxels()), model)
    assert outcome(result) == {}
    assert "normalised" in result.performed
    assert "hounsfield" not in result.performed
    assert "none below -20" in result.not_performed["hounsfield"]


def test_an_accepted_segmentation_still_gets_every_other_check(tmp_path, ct_model):
    voxels = (ct_voxels() > 0).astype(np.uint8)
    image = write_image(tmp_path / "a_0000.nii.gz", voxels, spacing=(0.003, 0.002, 0.0015), orientation="RPS")
    refused = check_one(image, ct_model)
    assert outcome(refused) == {"label_map": "REFUSED"}
    assert "spacing" not in refused.performed
    accepted = check_one(image, ct_model, ("label_map",))
    assert set(accepted.performed) == set(CHECKS) - {"internal", "normalised"}
    found = {"label_map": "WARNING", "spacing": "REFUSED", "orientation": "REFUSED", "field_of_view": "REFUSED"}
    assert found.items() <= outcome(accepted).items()


@pytest.mark.parametrize("name", CASES)
def test_what_a_ct_model_says_of(tmp_path, ct_model, name):
    voxels, geometry, expected = CASES[name]
    result = check_one(write_image(tmp_path / "a_0000.nii.gz", voxels, **geometry), ct_model)
    assert outcome(result) == expected
    for finding in result.findings:
        assert finding.file == str(tmp_path / "a_0000.nii.gz")
        assert finding.reason
        assert finding.remedy.endswith(".")


@pytest.mark.parametrize(
    ("voxels", "masked", "expected"),
    [
        (ct_voxels(), False, {"modality": "REFUSED"}),
        (np.clip(ct_voxels(), -125, 275), False, {"modality": "REFUSED"}),
        ((mr_voxels() - 300) / 250, False, {"normalised": "WARNING"}),
        ((mr_voxels() - 300) / 250, True, {"normalised": "REFUSED"}),
        (mr_voxels() / 900, False, {"normalised": "WARNING"}),
        (1e5 * mr_voxels(), False, {}),
    ],
    ids=["CT", "clipped CT", "z-scored", "z-scored and masked", "scaled to 1", "large"],
)  # fmt: skip
def test_what_an_mr_model_says_of(tmp_path, voxels, masked, expected):
    model = write_model(tmp_path / "model", ("T1",), masked)
    assert outcome(check_one(write_image(tmp_path / "a_0000.nii.gz", voxels), model)) == expected


def test_a_sheared_direction_is_refused(tmp_path, ct_model):
    # NIfTI has no reader that lets one through; MetaImage has.
    model = json.loads((ct_model / "dataset.json").read_text())
    (ct_model / "dataset.json").write_text(json.dumps({**model, "file_ending": ".mha"}))
    path = write_image(tmp_path / "a_0000.mha", ct_voxels())
    text = path.read_bytes()
    assert b"TransformMatrix = 1 0 0 0 1 0 0 0 1" in text
    path.write_bytes(text.replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0 0 1 0 0 1 1"))
    assert outcome(check_one(path, ct_model)).get("direction") == "REFUSED"


def test_a_header_that_leaves_the_geometry_open_is_refused_unless_accepted(tmp_path, ct_model):
    path = write_image(tmp_path / "a_0000.nii.gz", ct_voxels())
    sound = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(sound[:252] + bytes(4) + sound[256:]))
    assert outcome(check_one(path, ct_model)) == {"header": "REFUSED"}
    assert outcome(check_one(path, ct_model, ("header",))) == {"header": "WARNING"}
    # A scaling that is not finite leaves the geometry as it is.
    path.write_bytes(gzip.compress(sound[:112] + struct.pack("<f", float("nan")) + sound[116:]))
    assert outcome(check_one(path, ct_model)) == {"header": "WARNING"}


def test_models_trained_on_unusual_intensities_are_not_judged_by_the_usual(tmp_path):
    shifted = {"min": 800.0, "percentile_00_5": 900.0, "median": 1074.0, "percentile_99_5": 1200.0, "max": 1500.0}
    model = write_model(tmp_path / "shifted", ("CT",), intensities=shifted)
    result = check_one(write_image(tmp_path / "a_0000.nii.gz", ct_voxels() + np.int16(1024)), model)
    assert outcome(result) == {}
    assert "Hounsfield" in result.not_performed["modality"]
    negative = {"min": -500.0, "percentile_00_5": -300.0, "median": 100.0, "percentile_99_5": 500.0, "max": 900.0}
    model = write_model(tmp_path / "phase", ("MR",), intensities=negative)
    assert outcome(check_one(write_image(tmp_path / "b_0000.nii.gz", mr_voxels() - 300), model)) == {}


def test_what_cannot_be_compared_is_said(tmp_path):
    model = write_model(tmp_path / "model", ("PET",), orientations=None)
    result = check_one(write_image(tmp_path / "a_0000.nii.gz", mr_voxels(), orientation="RPS"), model)
    assert outcome(result) == {}
    assert "PET" in result.not_performed["modality"]
    assert "swinfuse_export" in result.not_performed["orientation"]


def test_an_accepted_refusal_is_a_warning_that_says_so_and_some_cannot_be(tmp_path, ct_model):
    image = write_image(tmp_path / "a_0000.nii.gz", ct_voxels(), orientation="RPS")
    (finding,) = check_one(image, ct_model, ("orientation",)).findings
    assert (finding.severity, finding.accepted) == (Severity.WARNING, True)
    assert {"readable", "finite", "content", "internal"} <= NEVER_ACCEPTED


def test_a_check_that_breaks_refuses_the_case(tmp_path, ct_model, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(geometry_checks, "check_spacing", broken)
    image = write_image(tmp_path / "a_0000.nii.gz", ct_voxels())
    result = check_one(image, ct_model)
    assert outcome(result) == {"internal": "REFUSED"}
    assert "ZeroDivisionError: unforeseen" in result.findings[0].reason
    assert case_checks.check_case is check_case


def test_a_channel_that_covers_a_part_of_the_others_is_no_smaller_field_of_view(tmp_path):
    described = describe_model(write_model(tmp_path / "model", ("T1", "perfusion")))
    slab = mr_voxels(1)
    slab[:8] = slab[11:] = 0
    for case, first in (("whole", mr_voxels()), ("slabs", slab)):
        write_image(tmp_path / "images" / f"{case}_0000.nii.gz", first)
        write_image(tmp_path / "images" / f"{case}_0001.nii.gz", slab)
    results = {c.name: check_case(c, described) for c in find_cases([tmp_path / "images"], ".nii.gz", 2)}
    assert {name: outcome(result) for name, result in results.items()} == {
        "whole": {},
        "slabs": {"field_of_view": "REFUSED"},
    }
    assert all("field_of_view" in result.performed for result in results.values())
    assert len(results["slabs"].findings) == 1


def test_channels_must_be_complete_and_on_one_grid(tmp_path):
    model = write_model(tmp_path / "model", ("T1", "T2"))
    folder = tmp_path / "images"
    for case in ("whole", "shifted", "lacking", "surplus"):
        for number in range(3 if case == "surplus" else 1 if case == "lacking" else 2):
            spacing = (3.3, 2, 1.5) if (case, number) == ("shifted", 1) else SPACING
            write_image(folder / f"{case}_{number:04d}.nii.gz", mr_voxels(number), spacing)
    described = describe_model(model)
    results = {c.name: outcome(check_case(c, described)) for c in find_cases([folder], ".nii.gz", 2)}
    refused = {"channels": "REFUSED"}
    assert results == {"whole": {}, "shifted": refused, "lacking": refused, "surplus": refused}


@pytest.mark.parametrize("second", [1.9531, 1.95311, 1.95313, 1.953125, 1.9541])
def test_channels_have_the_spacings_that_nnunets_reader_accepts(tmp_path, second):
    described = describe_model(write_model(tmp_path / "model", ("T1", "T2")))
    files = [
        write_image(tmp_path / "in" / f"a_{number:04d}.nii.gz", mr_voxels(number), (3.0, spacing, 1.5))
        for number, spacing in enumerate((1.9531, second))
    ]
    try:
        SimpleITKIO().read_images([str(file) for file in files])
        expected = {}
    except RuntimeError:
        expected = {"channels": "REFUSED"}
    assert bool(expected) == (abs(second - 1.9531) > 2e-5)
    (case,) = find_cases([tmp_path / "in"], ".nii.gz", 2)
    result = check_case(case, described)
    assert outcome(result) == expected
    if expected:
        assert f"spacing [1.5, 1.9531, 3.0] and [1.5, {second}, 3.0]" in result.findings[0].reason
