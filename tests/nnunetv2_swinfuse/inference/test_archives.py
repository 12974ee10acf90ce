"""Archives of a few bytes; the whole command is tested in test_verify.py."""

import hashlib
import stat
import zipfile

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
