"""Archives of a few bytes; the whole command is tested in test_verify.py."""

import hashlib
import stat
import struct
import zipfile
import zlib

import pytest

from nnunetv2_swinfuse.inference.archives import ArchiveError, inspect_archive, member_hash


def archive_of(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def link(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def test_the_files_of_a_sound_archive_are_listed_and_hashed(tmp_path):
    path = archive_of(tmp_path / "a.zip", ("a/", b""), ("a/b.json", b"{}"), ("a/c.json", b"[]"))
    members = inspect_archive(path)
    assert [member.filename for member in members] == ["a/b.json", "a/c.json"]
    with zipfile.ZipFile(path) as archive:
        assert member_hash(archive, members[0]) == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../a", b"x")], "leads out"),
        ([("a/../../b", b"x")], "leads out"),
        ([("/etc/a", b"x")], "leads out"),
        ([("C:/a", b"x")], "leads out"),
        ([("a\\..\\b", b"x")], "leads out"),
        ([("./a", b"x")], "no plain path"),
        ([("a//b", b"x")], "no plain path"),
        ([("a", b"x"), ("A", b"y")], "twice"),
        ([("a", b"x"), ("a/b", b"y")], "below a file"),
        ([(link("a"), b"/etc/passwd")], "link"),
        ([("a", bytes(1 << 24))], "unpacks"),
    ],
)
def test_archives_that_must_not_be_extracted(tmp_path, members, message):
    path = archive_of(tmp_path / "a.zip", *members)
    with pytest.raises(ArchiveError, match=rf"a\.zip: unsafe.*{message}"):
        inspect_archive(path)


def with_extra(path, in_contents, in_header):
    """An archive of one part, with other extra fields in its table of contents and in front of its data."""
    member = zipfile.ZipInfo("a/notes.md")
    member.extra = in_header
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"x")
        member.extra = in_contents
    return path


def unicode_path(name, other):
    """The extra field that gives a part another name."""
    body = struct.pack("<BL", 1, zlib.crc32(name.encode())) + other.encode()
    return struct.pack("<HH", 0x7075, len(body)) + body


@pytest.mark.parametrize("places", [(True, False), (False, True)])
def test_a_second_name_is_refused_wherever_it_is(tmp_path, places):
    second = unicode_path("a/notes.md", "a/fold_0/checkpoint_final.pth")
    path = with_extra(tmp_path / "a.zip", *(second if here else b"" for here in places))
    with pytest.raises(ArchiveError, match=r"a\.zip: unsafe .*'a/notes.md' has an extra field of type 0x7075"):
        inspect_archive(path)


def test_times_and_owners_are_accepted_and_cut_off_fields_are_not(tmp_path):
    # As Info-ZIP writes them.
    times, owners = struct.pack("<HHBl", 0x5455, 5, 1, 0), struct.pack("<HHBBHBH", 0x7875, 7, 1, 2, 0, 2, 0)
    assert len(inspect_archive(with_extra(tmp_path / "a.zip", times + owners, times + owners))) == 1
    with pytest.raises(ArchiveError, match=r"b\.zip: damaged"):
        inspect_archive(with_extra(tmp_path / "b.zip", times[:-1], b""))


def test_an_archive_of_a_part_beyond_4_gb_is_accepted(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, archive.open("a/b.pth", "w", force_zip64=True) as part:
        part.write(b"x")
    assert len(inspect_archive(tmp_path / "a.zip")) == 1


def test_missing_and_damaged_archives_are_named(tmp_path):
    with pytest.raises(ArchiveError, match="no such file"):
        inspect_archive(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    with pytest.raises(ArchiveError, match="damaged or no zip"):
        inspect_archive(tmp_path / "a.zip")


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a", b"0123456789")
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"1123456789"))
    (member,) = inspect_archive(path)
    with zipfile.ZipFile(path) as archive, pytest.raises(ArchiveError, match="a is damaged"):
        member_hash(archive, member)
