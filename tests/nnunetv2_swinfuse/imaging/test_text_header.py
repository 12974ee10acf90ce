"""Headers written by hand, voxels of a known number of bytes."""

import zlib

import pytest

from nnunetv2_swinfuse.imaging.text_header import (
    Attached,
    TextHeaderError,
    count_voxel_bytes,
    find_header_problems,
    parse_text_header,
)

VOXELS = bytes(range(240))
META = b"ObjectType = Image\nNDims = 3\n%sElementDataFile = LOCAL\n"
NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: %s\n\n"


def test_voxels_begin_after_the_header():
    header = META % b""
    assert parse_text_header(header + VOXELS, ".mha") == Attached(len(header), False)
    for size in (b"0", b"-1"):
        header = META % (b"HeaderSize = %s\n" % size)
        assert parse_text_header(header + VOXELS, ".mha") == Attached(len(header), False)
    header = META % b"CompressedData = True\nCompressedDataSize = 77\n"
    assert parse_text_header(header + VOXELS, ".mha") == Attached(len(header), True, 77)
    for encoding, compressed in ((b"raw", False), (b"gzip", True), (b"gz", True)):
        header = NRRD % encoding
        assert parse_text_header(header + VOXELS, ".nrrd") == Attached(len(header), compressed)


@pytest.mark.parametrize(
    ("content", "ending", "message"),
    [
        (b"ObjectType = Image\n", ".mha", "no ElementDataFile"),
        ((META % b"").replace(b"LOCAL", b"/etc/passwd"), ".mha", "another file, '/etc/passwd'"),
        ((META % b"").replace(b"Element", b"ElementDataFile: secret\nElement"), ".mha", "another file, 'secret'"),
        (META % b"HeaderSize = 60\n", ".mha", "HeaderSize '60', expected none"),
        (META % b"HeaderSize: 60\n", ".mha", "HeaderSize '60', expected none"),
        (META % b"HeaderSize = 0\nHeaderSize = 60\n", ".mha", "HeaderSize '60', expected none"),
        (META % b"CompressedData = Perhaps\n", ".mha", "expected True or False"),
        (META % b"CompressedData = True\n", ".mha", "no CompressedDataSize"),
        (META % b"CompressedData: True\n", ".mha", "no CompressedDataSize"),
        (b"NRRD0004\ntype: short\n", ".nrrd", "no header of an NRRD file"),
        (NRRD % b"bzip2", ".nrrd", "encoding 'bzip2'"),
        ((NRRD % b"raw").replace(b"\n\n", b"\ndata file: b.raw\n\n"), ".nrrd", "another file, 'b.raw'"),
    ],
)
def test_headers_that_are_refused(content, ending, message):
    with pytest.raises(TextHeaderError, match=message):
        parse_text_header(content, ending)


def test_bytes_of_voxels_are_counted(tmp_path):
    stream = zlib.compress(VOXELS)
    path = tmp_path / "a"
    path.write_bytes(META % b"" + VOXELS)
    assert count_voxel_bytes(path, ".mha", 240) == 240
    path.write_bytes(META % (b"CompressedData = True\nCompressedDataSize = %d\n" % len(stream)) + stream)
    assert count_voxel_bytes(path, ".mha", 240) == 240
    path.write_bytes(META % (b"CompressedData = True\nCompressedDataSize = %d\n" % (len(stream) + 1)) + stream)
    with pytest.raises(TextHeaderError, match="its header announces"):
        count_voxel_bytes(path, ".mha", 240)
    path.write_bytes(NRRD % b"gzip" + stream[:-6])
    with pytest.raises(TextHeaderError, match="truncated"):
        count_voxel_bytes(path, ".nrrd", 240)


def test_counting_a_bomb_ends_soon_after_the_expected_number(tmp_path):
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD % b"gzip" + zlib.compress(bytes(1 << 26)))
    assert 240 < count_voxel_bytes(path, ".nrrd", 240) <= 1 << 22


MATRIX, SPACING = b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b"ElementSpacing = 1 1 3\n"
OTHER = b"%s = -1 0 0 0 -1 0 0 0 1\n"
SPACE, DIRECTIONS = b"space: left-posterior-superior\n", b"space directions: (1,0,0) (0,1,0) (0,0,3)\n"
AXES = "does not say how its axes lie"


@pytest.mark.parametrize(
    ("ending", "fields", "words"),
    [
        (".mha", MATRIX + SPACING, None),
        (".mha", b"Rotation = 1 0 0 0 1 0 0 0 1\nElementSize = 1 1 3\n", None),
        (".mha", SPACING, AXES),
        (".mha", MATRIX, "how large its voxels are"),
        (".mha", MATRIX.replace(b" =", b":") + SPACING.replace(b" =", b":"), None),
        (".mha", MATRIX + SPACING + b"DistanceUnits = mm\nComment = a\nComment = b\n", None),
        (".mha", MATRIX + SPACING + b"DistanceUnits = ?\n", None),
        (".mha", MATRIX + SPACING + b"DistanceUnits = cm\n", "DistanceUnits 'cm', expected mm"),
        (".mha", MATRIX + SPACING + b"DistanceUnits: um\r\n", "DistanceUnits 'um', expected mm"),
        (".mha", MATRIX + SPACING + b"ElementSpacing = 1.0 1 3.00\n", None),
        (".mha", MATRIX + SPACING + b"ElementSpacing = 4 4 4\n", "ElementSpacing '1 1 3' and ElementSpacing '4 4 4'"),
        (".mha", MATRIX + SPACING + b"ElementSpacing: 4 4 4\n", "ElementSpacing '1 1 3' and ElementSpacing '4 4 4'"),
        (".mha", MATRIX + SPACING + MATRIX.replace(b"TransformMatrix", b"Rotation"), None),
        (".mha", MATRIX + SPACING + OTHER % b"Rotation", "1' and Rotation '-1 0 0 0 -1 0 0 0 1'"),
        (".mha", OTHER % b"Orientation" + MATRIX + SPACING, "TransformMatrix '1 0 0 0 1 0 0 0 1' and Orientation '-1"),
        (".mha", MATRIX + SPACING + b"DimSize = 4 5 6\nDimSize = 5 4 6\n", "DimSize '4 5 6' and DimSize '5 4 6'"),
        (".nrrd", SPACE + DIRECTIONS, None),
        (".nrrd", b"Space: RAS\r\n" + DIRECTIONS, None),
        (".nrrd", SPACE + DIRECTIONS + b'space units: "mm" "mm" ""\n', None),
        (".nrrd", SPACE + DIRECTIONS + b'space units: "cm" "cm" "cm"\n', "space units 'cm' 'cm' 'cm', expected mm"),
        (".nrrd", b"space dimension: 3\n" + DIRECTIONS, AXES),
        (".nrrd", b"space: 3D-right-handed\n" + DIRECTIONS, AXES),
        (".nrrd", b"space:=LPS\n" + DIRECTIONS, AXES),
        (".nrrd", b"spacings: 1 1 3\n", AXES),
        (".nrrd", SPACE + b"spacings: 1 1 3\n", AXES),
    ],
)
def test_what_a_header_leaves_open(ending, fields, words):
    content = META % fields if ending == ".mha" else (NRRD % b"raw").replace(b"type:", fields + b"type:")
    reasons = [problem.reason for problem in find_header_problems(content, ending)]
    assert len(reasons) == (words is not None)
    assert all(words in reason for reason in reasons)
    with pytest.raises(TextHeaderError):
        find_header_problems(content[:40], ending)
