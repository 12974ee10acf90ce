"""Files that are complete or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_swinfuse.errors import InputError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; the file written there replaces `path` when the block ends.

    The temporary file is named `NAME.TOKEN.tmp.SUFFIX`: it keeps the suffix, by which some writers choose their format,
    and :func:`is_temporary` knows the files of killed processes. The token is random, since processes of several
    machines may write the same file. The folder is created where it is missing. When the block raises, the temporary
    file is removed and an older file at `path` stays as it was.

    Args:
        path: the file to write.

    Raises:
        OSError: when the disk is full, the folder cannot be written, or the block wrote nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_temporary(path: Path) -> bool:
    """Whether a file has the name of one that :func:`atomic_write` has not finished."""
    return ".tmp" in path.suffixes


def write_text(path: Path, text: str) -> None:
    """Writes a text file (UTF-8) completely or not at all.

    Raises:
        InputError: when it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another"
        ) from error


def move_into_place(temporary: Path, path: Path) -> None:
    """Flushes a finished file to disk and renames it, in one file system; replaces what has that name.

    Raises:
        OSError: when it is missing or the folder cannot be written.
    """
    # Without this a crash of the machine may leave the new name with an empty file.
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
