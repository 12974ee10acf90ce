"""Headers as ITK writes them, with fields changed; nibabel reads the oracle."""

import gzip
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.imaging.nifti_header import conflicts, header_conflicts

ORIENTATIONS = ("LPS", "RAS", "LAS", "PIR", "SLP", "IRA")


def written(folder, orientation="LPS", ending=".nii"):
    image = sitk.Image([4, 5, 6], sitk.sitkInt16)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(orientation))
    sitk.WriteImage(image, str(folder / f"a{ending}"))
    return folder / f"a{ending}"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd"])
def test_sound_headers_have_no_conflicts(tmp_path, orientation, ending):
    assert header_conflicts(written(tmp_path, orientation, ending)) == []


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_sform_that_mirrors_is_named_with_both_orientations(tmp_path, orientation):
    header = bytearray(written(tmp_path, orientation).read_bytes()[:352])
    rows = np.reshape(struct.unpack_from("<12f", header, 280), (3, 4)).copy()
    rows[0, :3] *= -1
    struct.pack_into("<12f", header, 280, *rows.ravel())
    # ITK's codes and NIfTI's name the same sides; the letter for left and right is the one that changes.
    mirrored = orientation.translate(str.maketrans("LR", "RL"))
    assert conflicts(bytes(header)) == [f"its axes point to {orientation} by its qform and to {mirrored} by its sform"]
    struct.pack_into("<2h", header, 252, 0, 1)
    assert conflicts(bytes(header)) == []


def test_an_sform_that_points_nowhere(tmp_path):
    header = bytearray(written(tmp_path).read_bytes()[:352])
    for values in ([0.0] * 12, [float("nan")] * 12):
        struct.pack_into("<12f", header, 280, *values)
        assert conflicts(bytes(header)) == ["its axes point to LPS by its qform and to nowhere by its sform"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("offset", [112, 116])
def test_scaling_that_is_no_number(tmp_path, offset, value):
    path = written(tmp_path)
    header = bytearray(path.read_bytes())
    struct.pack_into("<f", header, offset, value)
    (result,) = conflicts(bytes(header))
    assert f"{value}" in result
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(header)))
    assert header_conflicts(tmp_path / "b.nii.gz") == [result]


def test_both_versions_and_byte_orders_as_nibabel_writes_them(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[0, 0, -3.0, 5], [-1.0, 0, 0, 6], [0, 2.0, 0, 7], [0, 0, 0, 1]])
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for order in "<>":
            image = kind(np.zeros((3, 4, 5), np.int16), affine, kind.header_class(endianness=order))
            image.set_sform(affine, 1)
            image.set_qform(affine, 1)
            assert conflicts(image.to_bytes()[:540]) == []
            image.set_qform(affine * np.array([[1.0], [-1.0], [1.0], [1.0]]), 1)
            axes = "".join(nibabel.aff2axcodes(affine))
            (result,) = conflicts(image.to_bytes()[:540])
            assert f"and to {axes} by its sform" in result
