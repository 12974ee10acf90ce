"""Headers as ITK and nibabel write them, with fields changed; nibabel reads the oracle."""

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.imaging.nifti_header import HEADER_BYTES, HeaderError, parse_nifti_header

ORIENTATIONS = ("LPS", "RAS", "LAS", "PIR", "SLP", "IRA")
NOT_SET = "neither qform nor sform is set: the file does not say how its axes lie in the body"


def written(folder, orientation="LPS", turned=0.0):
    """The header of a volume whose first and second axis are turned by an angle in radians."""
    image = sitk.Image([4, 5, 6], sitk.sitkInt16)
    image.SetSpacing((1.0, 2.0, 3.0))
    direction = np.reshape(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(orientation), (3, 3))
    image.SetDirection((about_z(turned) @ direction).ravel().tolist())
    sitk.WriteImage(image, str(folder / "a.nii"))
    return bytearray((folder / "a.nii").read_bytes()[:HEADER_BYTES])


def about_z(angle):
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def change_sform(header, change):
    """Applies a function to the sform, (3, 3), of a header in place."""
    rows = np.reshape(struct.unpack_from("<12f", header, 280), (3, 4)).copy()
    rows[:, :3] = change(rows[:, :3])
    struct.pack_into("<12f", header, 280, *rows.ravel())


def problems(header):
    return [problem.reason for problem in parse_nifti_header(bytes(header)).problems()]


@pytest.mark.parametrize("order", "<>")
def test_headers_of_both_versions_in_both_byte_orders(order):
    first, second = bytearray(540), bytearray(540)
    struct.pack_into(f"{order}i", first, 0, 348)
    struct.pack_into(f"{order}4h", first, 40, 3, 4, 5, 6)
    struct.pack_into(f"{order}2h", first, 70, 16, 32)
    struct.pack_into(f"{order}f", first, 108, 352)
    first[344:348] = b"n+1\0"
    struct.pack_into(f"{order}i", second, 0, 540)
    second[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into(f"{order}2h", second, 12, 4, 16)
    struct.pack_into(f"{order}4q", second, 16, 3, 4, 5, 6)
    struct.pack_into(f"{order}q", second, 168, 544)
    for content, expected in ((first, (352, 480, f"{order}f4")), (second, (544, 240, None))):
        header = parse_nifti_header(bytes(content))
        assert (header.offset, header.length, header.floats) == expected


def test_other_formats_have_no_header():
    assert parse_nifti_header(b"short") is None
    assert parse_nifti_header(bytes(540)) is None


@pytest.mark.parametrize("magic", [bytes(4), b"ni1\0", b"n+2\0", b"n+1\1", b"m+1\0"])
def test_another_magic_is_a_damaged_header(tmp_path, magic):
    header = written(tmp_path, "RAS")
    header[344:348] = magic
    with pytest.raises(HeaderError) as caught:
        parse_nifti_header(bytes(header))
    assert f"magic {magic!r}, expected {b'n+1' + bytes(1)!r}" in str(caught.value)


@pytest.mark.parametrize("offset", [0.0, 348.0, -352.0, float("nan")])
def test_voxels_that_begin_within_the_header_are_refused(tmp_path, offset):
    header = written(tmp_path, "RAS")
    assert parse_nifti_header(bytes(header)).offset == 352
    struct.pack_into("<f", header, 108, offset)
    with pytest.raises(HeaderError, match=r"voxels from byte .* expected 352 or more"):
        parse_nifti_header(bytes(header))


@pytest.mark.parametrize("magic", [b"ni2\0\r\n\x1a\n", b"n+2\0\n\n\x1a\n", bytes(8)])
def test_another_magic_of_the_second_version(magic):
    nibabel = pytest.importorskip("nibabel")
    header = bytearray(nibabel.Nifti2Image(np.zeros((3, 4, 5), np.int16), np.eye(4)).to_bytes()[:540])
    parse_nifti_header(bytes(header))
    header[4:12] = magic
    with pytest.raises(HeaderError, match="magic"):
        parse_nifti_header(bytes(header))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("turned", [0.0, 0.4, np.pi / 4, 3.0])
def test_sound_headers_have_no_problems(tmp_path, orientation, turned):
    header = written(tmp_path, orientation, turned)
    assert problems(header) == []
    for codes in ((0, 1), (2, 0), (1, 4)):
        struct.pack_into("<2h", header, 252, *codes)
        assert problems(header) == []


def test_a_header_without_an_orientation(tmp_path):
    header = written(tmp_path)
    for codes in ((0, 0), (-1, 0)):
        struct.pack_into("<2h", header, 252, *codes)
        assert problems(header) == [NOT_SET]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_sform_that_mirrors_is_named_with_both_orientations(tmp_path, orientation):
    header = written(tmp_path, orientation)
    change_sform(header, lambda matrix: matrix * np.array([[-1], [1], [1]]))
    # ITK's codes and NIfTI's name the same sides; the letter for left and right is the one that changes.
    mirrored = orientation.translate(str.maketrans("LR", "RL"))
    assert problems(header) == [f"its axes point to {orientation} by its qform and to {mirrored} by its sform"]
    struct.pack_into("<2h", header, 252, 0, 1)
    assert problems(header) == []


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("angle", [0.0, 0.06, 0.9, 1.1, 30.0])
def test_an_sform_that_is_turned_or_sheared(tmp_path, orientation, angle):
    turned, sheared = written(tmp_path, orientation), written(tmp_path, orientation)
    change_sform(turned, lambda matrix: about_z(np.radians(angle)) @ matrix)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    shear = np.array([[1, 0, 0], [0, cosine, 0], [0, sine, 1]])
    # The second axis lies in the plane of the second and third; all lengths remain.
    change_sform(sheared, lambda matrix: matrix / [1, 2, 3] @ shear * [1, 2, 3])
    for header in (turned, sheared):
        reasons = problems(header)
        assert len(reasons) == (angle > 1)
        assert all(f"lie {angle:.2g} degrees apart" in reason for reason in reasons)


def test_an_sform_that_points_nowhere(tmp_path):
    header = written(tmp_path)
    for values in ([0.0] * 12, [float("nan")] * 12):
        struct.pack_into("<12f", header, 280, *values)
        assert problems(header) == ["its axes point to LPS by its qform and to nowhere by its sform"]


@pytest.mark.parametrize("quaternion", [(np.nan, 0, 0), (0, 0, np.inf), (0.9, 0.9, 0.9), (0, 0, 1.001)])
def test_a_qform_that_is_no_rotation(tmp_path, quaternion):
    header = written(tmp_path)
    struct.pack_into("<3f", header, 256, *quaternion)
    assert problems(header) == ["its axes point to nowhere by its qform and to LPS by its sform"]
    struct.pack_into("<2h", header, 252, 1, 0)
    assert problems(header) == [
        "its axes point to nowhere by its qform: the file does not say how its axes lie in the body"
    ]
    # Rounding of the three numbers.
    struct.pack_into("<3f", header, 256, 0, 0, 1.0004)
    assert problems(header) == []


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_sform_that_points_nowhere_and_is_the_only_orientation(tmp_path, value):
    header = written(tmp_path)
    struct.pack_into("<2h", header, 252, 0, 1)
    struct.pack_into("<f", header, 280, value)
    assert problems(header) == [
        "its axes point to nowhere by its sform: the file does not say how its axes lie in the body"
    ]


@pytest.mark.parametrize("codes", [(0, 1), (1, 1)])
def test_an_sform_of_another_voxel_size(tmp_path, codes):
    header = written(tmp_path)
    struct.pack_into("<2h", header, 252, *codes)
    change_sform(header, lambda matrix: 1.005 * matrix)
    assert problems(header) == []
    change_sform(header, lambda matrix: 2 / 1.005 * matrix)
    assert problems(header) == ["voxels of 3 x 2 x 1 mm (z, y, x) by its pixdim and of 6 x 4 x 2 mm by its sform"]
    struct.pack_into("<2h", header, 252, 1, 0)
    assert problems(header) == []


@pytest.mark.parametrize("factor", [1e-30, 1e37])
def test_an_sform_of_a_damaged_header_is_named_without_a_warning_of_numpy(tmp_path, factor):
    header = written(tmp_path)
    change_sform(header, lambda matrix: factor * matrix)
    with np.errstate(all="raise"):
        assert f"{3 * factor:.4g} x" in problems(header)[-1]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_voxel_size_that_is_none(tmp_path, value):
    header = written(tmp_path)
    struct.pack_into("<f", header, 80, value)
    (reason,) = problems(header)
    assert "no size that a voxel can have" in reason


@pytest.mark.parametrize(("unit", "words"), [(0, None), (2, None), (10, None), (1, "metre"), (11, "micrometre")])
def test_units_other_than_millimetres(tmp_path, unit, words):
    header = written(tmp_path)
    struct.pack_into("<B", header, 123, unit)
    reasons = problems(header)
    assert len(reasons) == (words is not None)
    assert all(f"unit of length is the {words}:" in reason for reason in reasons)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("offset", [112, 116])
def test_scaling_that_is_no_number_is_no_matter_of_geometry(tmp_path, offset, value):
    header = written(tmp_path)
    struct.pack_into("<f", header, offset, value)
    (problem,) = parse_nifti_header(bytes(header)).problems()
    assert f"{value}" in problem.reason
    assert not problem.geometry


def test_both_versions_and_byte_orders_as_nibabel_writes_them():
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[0, 0, -3.0, 5], [-1.0, 0, 0, 6], [0, 2.0, 0, 7], [0, 0, 0, 1]])
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for order in "<>":
            image = kind(np.zeros((3, 4, 5), np.int16), affine, kind.header_class(endianness=order))
            assert problems(image.to_bytes()[:540]) == []
            image.set_sform(affine, 1)
            image.set_qform(affine, 1)
            image.header.set_xyzt_units("mm", "sec")
            assert problems(image.to_bytes()[:540]) == []
            image.set_qform(affine * np.array([[1.0], [-1.0], [1.0], [1.0]]), 1)
            axes = "".join(nibabel.aff2axcodes(affine))
            (result,) = problems(image.to_bytes()[:540])
            assert f"and to {axes} by its sform" in result
            image.header.set_xyzt_units("micron")
            image.set_qform(None, 0)
            image.set_sform(None, 0)
            # nibabel sets scaling and offset when it writes.
            image.header.set_data_offset(len(image.header.binaryblock) + 4)
            _, without, unit = problems(image.header.binaryblock.ljust(540, b"\0"))
            assert without == NOT_SET
            assert "micrometre" in unit


def test_rounding_of_random_oblique_affines_is_no_contradiction():
    nibabel = pytest.importorskip("nibabel")
    random = np.random.default_rng(0)
    for _ in range(60):
        rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = rotation * random.uniform(0.3, 8, 3)
        image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        header = bytearray(image.to_bytes()[:540])
        assert problems(header) == []
        # A quaternion of four digits.
        quaternion = np.array(struct.unpack_from("<3f", header, 256))
        if (quaternion**2).sum() < 0.99:
            struct.pack_into("<3f", header, 256, *np.round(quaternion, 4))
            assert problems(header) == []
