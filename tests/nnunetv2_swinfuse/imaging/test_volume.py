"""What cannot be an image of a patient is named, whatever the format."""

import gzip
import os
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.imaging.nifti import scan_nifti
from nnunetv2_swinfuse.imaging.nifti_header import HeaderError, parse_nifti_header
from nnunetv2_swinfuse.imaging.volume import VolumeError, read_volume

VOXELS = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)


def write(path, voxels=VOXELS, compress=False):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.5, 2.0, 3.0))
    sitk.WriteImage(image, str(path), compress)
    return path


def refusal(path):
    with pytest.raises(VolumeError, match=str(path)) as caught:
        read_volume(path)
    return caught.value


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_every_format_is_read_with_axes_z_y_x(tmp_path, ending):
    volume = read_volume(write(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.grid.spacing, (1.5, 2.0, 3.0))
    assert volume.integer


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.97])
def test_truncated_files_are_named(tmp_path, ending, compress, share):
    path = write(
        tmp_path / f"a{ending}", np.random.default_rng(0).integers(0, 999, (20, 21, 22)).astype(np.int16), compress
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path).check == "readable"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", b"no volume"),
        ("a.nii", b""),
        ("a.mha", b"<html>"),
        ("a.nrrd", b"\0" * 999),
        ("a.dcm", b"DICM"),
        ("a.gipl", b"x"),
    ],
)
def test_other_content_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).check == "readable"


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "nowhere")
    for name in ("folder.nii.gz", "link.nii.gz", "missing.nii.gz"):
        assert "no such file" in refusal(tmp_path / name).reason


@pytest.mark.parametrize(
    ("voxels", "check"),
    [
        (np.zeros((3, 4, 5, 6), np.int16), "three_dimensional"),
        (np.zeros((4, 5), np.int16), "three_dimensional"),
        (np.where(VOXELS == 7, np.nan, VOXELS).astype(np.float32), "finite"),
        (np.where(VOXELS == 7, -np.inf, VOXELS), "finite"),
        (np.where(VOXELS == 7, 1e300, VOXELS), "finite"),
        (np.where(VOXELS == 7, 1e30, VOXELS), "finite"),
    ],
    ids=["4D", "2D", "NaN", "infinite", "beyond float32", "huge"],
)
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_voxels_that_no_network_should_see(tmp_path, voxels, check, ending):
    assert refusal(write(tmp_path / f"a{ending}", voxels)).check == check


def test_colours_and_complex_numbers_are_no_image(tmp_path):
    colours = sitk.GetImageFromArray(np.zeros((6, 7, 8, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / "a.nrrd"))
    assert refusal(tmp_path / "a.nrrd").check == "three_dimensional"
    header = bytearray(write(tmp_path / "b.nii").read_bytes())
    header[70:74] = struct.pack("<2h", 32, 64)
    (tmp_path / "b.nii").write_bytes(bytes(header) + bytes(6 * 7 * 8 * 6))
    assert refusal(tmp_path / "b.nii").check in ("readable", "three_dimensional")


def test_voxels_in_another_file_are_refused(tmp_path):
    write(tmp_path / "a.mha")
    header, voxels = (tmp_path / "a.mha").read_bytes().split(b"LOCAL\n")
    (tmp_path / "secret").write_bytes(voxels)
    (tmp_path / "b.mha").write_bytes(header + str(tmp_path / "secret").encode() + b"\n")
    # ITK would read the other file.
    assert sitk.ReadImage(str(tmp_path / "b.mha")).GetSize() == (8, 7, 6)
    assert "another file" in refusal(tmp_path / "b.mha").reason
    # ITK reads a field with a colon as well, and the first of two files.
    other = header.replace(b"ElementDataFile = ", b"ElementDataFile: secret\nElementDataFile = ")
    (tmp_path / "d.mha").write_bytes(other + b"LOCAL\n" + bytes(len(voxels)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "d.mha"))), VOXELS)
    assert "another file, 'secret'" in refusal(tmp_path / "d.mha").reason
    (tmp_path / "c.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 8 7 6\nencoding: raw\nendian: little\ndata file: secret\n\n"
    )
    assert sitk.ReadImage(str(tmp_path / "c.nrrd")).GetSize() == (8, 7, 6)
    assert "another file" in refusal(tmp_path / "c.nrrd").reason


def test_a_header_that_announces_more_than_the_file_can_hold(tmp_path):
    path = write(tmp_path / "a.mha")
    path.write_bytes(path.read_bytes().replace(b"DimSize = 8 7 6", b"DimSize = 80000 70000 60000"))
    assert "announces" in refusal(path).reason


def test_more_voxels_than_the_header_announces(tmp_path):
    path = write(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[46:48] = struct.pack("<h", 5)
    path.write_bytes(content)
    # ITK reads a truncated volume without a warning.
    assert sitk.ReadImage(str(path)).GetSize() == (8, 7, 5)
    assert "112 bytes follow" in refusal(path).reason
    with gzip.open(tmp_path / "b.nii.gz", "wb") as file:
        file.write(bytes(content))
    assert scan_nifti(tmp_path / "b.nii.gz").surplus == 112


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (40, struct.pack("<h", 9)),
        (42, struct.pack("<h", -8)),
        (42, struct.pack("<h", 0)),
        (72, struct.pack("<h", -16)),
        (108, struct.pack("<f", float("nan"))),
        (108, struct.pack("<f", float("inf"))),
        (108, struct.pack("<f", -352.0)),
    ],
)
def test_impossible_headers_are_no_crash(tmp_path, offset, value):
    path = write(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(HeaderError):
        parse_nifti_header(bytes(content))
    assert "damaged header" in refusal(path).reason


@pytest.mark.parametrize(("ending", "sizes"), [(".mha", b"DimSize = %d 7 6"), (".nrrd", b"sizes: %d 7 6")])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("wrong", [7, 9])
def test_a_text_header_of_another_size_than_its_voxels(tmp_path, ending, sizes, compress, wrong):
    path = write(tmp_path / f"a{ending}", compress=compress)
    content = path.read_bytes()
    assert sizes % 8 in content
    path.write_bytes(content.replace(sizes % 8, sizes % wrong))
    if wrong == 7:
        # ITK cuts the volume and shifts its rows.
        assert sitk.ReadImage(str(path)).GetSize() == (7, 7, 6)
    assert refusal(path).check == "readable"


def test_a_path_that_is_not_utf8_is_refused_before_itk_aborts(tmp_path):
    path = write(tmp_path / "a.nii.gz").rename(tmp_path / os.fsdecode(b"M\xfcller.nii.gz"))
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert caught.value.check == "readable"
    assert "not UTF-8" in caught.value.reason
    assert "rename" in caught.value.remedy


@pytest.mark.parametrize(
    ("ending", "field"),
    [(".nii", None), (".nii.gz", None), (".mha", b"TransformMatrix"), (".nrrd", b"space")],
)
def test_a_header_without_an_orientation_is_read_and_reported(tmp_path, ending, field):
    path = write(tmp_path / f"a{ending}")
    assert read_volume(path).header_problems == ()
    content = gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes()
    if field is None:
        content = content[:252] + bytes(4) + content[256:]
    else:
        (line,) = (line for line in content.split(b"\n") if line.startswith((field + b":", field + b" =")))
        content = content.replace(line, b"space dimension: 3" if ending == ".nrrd" else b"Comment = ")
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    (problem,) = volume.header_problems
    assert problem.geometry
    assert "does not say how its axes lie" in problem.reason


def test_a_header_that_only_itk_takes_for_nifti(tmp_path):
    # Found by damaging files at random: without its length nothing tells that voxels are missing.
    path = write(tmp_path / "a.nii")
    path.write_bytes(bytes([path.read_bytes()[0] ^ 3]) + path.read_bytes()[1:-1])
    assert sitk.ReadImage(str(path)).GetSize() == (8, 7, 6)
    assert "no header of a NIfTI" in refusal(path).reason


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_damaged_magic_by_which_itk_would_take_the_file_for_analyze(tmp_path, ending):
    image = sitk.GetImageFromArray(VOXELS)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(image, str(path))
    content = bytearray(gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes())
    content[344] = 0
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    # Left and right change sides: ITK ignores the qform and sform of ANALYZE files.
    assert sitk.ReadImage(str(path)).GetDirection()[0] == 1
    found = refusal(path)
    assert found.check == "readable"
    assert "damaged header (magic" in found.reason


def test_another_length_of_the_compressed_stream(tmp_path, capfd):
    # Found by damaging files at random.
    path = write(tmp_path / "a.mha", np.random.default_rng(0).integers(0, 999, (6, 7, 8)).astype(np.int16), True)
    sound = read_volume(path).voxels
    content = path.read_bytes()
    (length,) = (line for line in content.split(b"\n") if line.startswith(b"CompressedDataSize"))
    path.write_bytes(content.replace(length, length[:-1]))
    assert not np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), sound)
    assert "its header announces" in refusal(path).reason


def test_an_uncompressed_file_of_the_same_name(tmp_path):
    # Found by damaging files at random: a volume came out with the damage of another file.
    path, uncompressed = write(tmp_path / "a.nii.gz"), write(tmp_path / "a.nii", VOXELS + np.int16(1))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VOXELS + 1)
    assert "a.nii is in the same folder" in refusal(path).reason
    np.testing.assert_array_equal(read_volume(uncompressed).voxels, VOXELS + 1)
