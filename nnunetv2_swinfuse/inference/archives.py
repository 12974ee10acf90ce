"""Zip archives from outside: their table of contents is checked before any byte is written or interpreted."""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import zipfile
from pathlib import Path

from nnunetv2_swinfuse.errors import InputError

MOST_MEMBERS = 10_000
LARGEST_TOTAL = 128 * 1024**3
# Weights shrink by a tenth, JSON of nnU-Net to a fortieth; beyond this and a megabyte it is a bomb.
HIGHEST_RATIO = 200
# Extra fields that hold sizes beyond 4 GB, times and owners. Others can name another file (0x7075, which unzip and
# Python 3.12 follow) or a link (0x000D, 0x756E).
HARMLESS_EXTRAS = {0x0001, 0x000A, 0x5455, 0x5855, 0x7855, 0x7875}
# Lengths of name and extra fields; type and length of an extra field.
_LOCAL_HEADER, _EXTRA_FIELD = struct.Struct("<26xHH"), struct.Struct("<HH")
_MEBIBYTE = 1 << 20
_DRIVE = re.compile(r"[A-Za-z]:")


class ArchiveError(InputError):
    """A zip that must not be extracted; the message names it, what was found and what to do."""


def inspect_archive(path: Path) -> list[zipfile.ZipInfo]:
    """The files in a zip.

    Raises:
        ArchiveError: listing paths that lead out of the target folder, links and other special files, encrypted parts,
            names that overwrite each other, extra fields that programs may take for other names, and parts that are
            larger than the archive can hold.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            problems = _problems(members, path.stat().st_size) or _extra_fields(path, members)
            for member in members if not problems else ():
                # Compares the name before the data with the one in the table of contents.
                archive.open(member).close()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise ArchiveError(f"{path}: damaged or no zip ({type(error).__name__}: {error}); download it again") from error
    except Exception as error:
        raise ArchiveError(f"{path}: damaged zip ({type(error).__name__}: {error}); download it again") from error
    if problems:
        raise ArchiveError(f"{path}: unsafe to extract, refused: {'; '.join(problems[:10])}. Do not extract this file")
    return [member for member in members if not member.is_dir()]


def _problems(members: list[zipfile.ZipInfo], size: int) -> list[str]:
    problems = []
    if len(members) > MOST_MEMBERS:
        problems.append(f"{len(members)} parts, expected at most {MOST_MEMBERS}")
    names: set[str] = set()
    for member in members:
        # zipfile cuts names at a zero byte; the original tells.
        name = member.orig_filename
        parts = name.replace("\\", "/").rstrip("/").split("/")
        if name.startswith(("/", "\\")) or _DRIVE.match(name) or ".." in parts or "\x00" in name or "\\" in name:
            problems.append(f"{name!r} leads out of the folder")
        elif "" in parts or "." in parts or any(ord(letter) < 32 for letter in name):
            problems.append(f"{name!r} is no plain path")
        if name.lower() in names:
            problems.append(f"{name!r} is in it twice")
        names.add(name.lower())
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problems.append(f"{name!r} is a link or a special file")
        if member.flag_bits & 1:
            problems.append(f"{name!r} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problems.append(f"{name!r} is compressed by method {member.compress_type}")
        if member.file_size > max(_MEBIBYTE, HIGHEST_RATIO * member.compress_size):
            problems.append(f"{name!r} unpacks {member.compress_size} bytes to {member.file_size}")
    for name in names:
        if any("/".join(name.split("/")[:depth]) in names for depth in range(1, name.rstrip("/").count("/") + 1)):
            problems.append(f"{name!r} lies below a file")
    if sum(member.file_size for member in members) > LARGEST_TOTAL:
        problems.append(f"more than {LARGEST_TOTAL} bytes in all")
    if sum(member.compress_size for member in members) > size:
        problems.append("its parts overlap")
    return problems


def _extra_fields(path: Path, members: list[zipfile.ZipInfo]) -> list[str]:
    """Unknown extra fields, in the table of contents and in front of the data: programs differ in which they read."""
    problems = []
    with path.open("rb") as file:
        for member in members:
            file.seek(member.header_offset)
            name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            file.seek(name_length, 1)
            kinds = {*_kinds(member.extra), *_kinds(file.read(extra_length))}
            problems += [
                f"{member.orig_filename!r} has an extra field of type 0x{kind:04X}, which can give it another name"
                for kind in sorted(kinds - HARMLESS_EXTRAS)
            ]
    return problems


def _kinds(extra: bytes) -> list[int]:
    """Types of the extra fields of a part.

    Raises:
        ValueError, struct.error: when they do not end where the last one does.
    """
    kinds = []
    while extra:
        kind, length = _EXTRA_FIELD.unpack(extra[: _EXTRA_FIELD.size])
        extra = extra[_EXTRA_FIELD.size :]
        if len(extra) < length:
            raise ValueError("extra fields are cut off")
        kinds.append(kind)
        extra = extra[length:]
    return kinds


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A part as a whole; its CRC is compared.

    Raises:
        ArchiveError: when it is damaged.
    """
    try:
        return archive.read(member)
    except Exception as error:
        raise _damaged(archive, member, error) from error


def member_hash(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    """SHA-256 of a part, read a megabyte at a time; its CRC is compared on the way.

    Raises:
        ArchiveError: when it is damaged.
    """
    digest = hashlib.sha256()
    try:
        with archive.open(member) as file:
            while block := file.read(_MEBIBYTE):
                digest.update(block)
    except Exception as error:
        raise _damaged(archive, member, error) from error
    return digest.hexdigest()


def _damaged(archive: zipfile.ZipFile, member: zipfile.ZipInfo, error: Exception) -> ArchiveError:
    return ArchiveError(
        f"{archive.filename}: {member.filename} is damaged ({type(error).__name__}: {error}); download it again"
    )
