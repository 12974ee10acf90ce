"""Files that are complete or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`; what is written there replaces `path` when the block ends.

    The temporary file is named `NAME.TOKEN.tmp.SUFFIX`: it keeps the suffix, by which some writers choose their format,
    and `*.tmp*` finds what a killed process left. The token is random, since processes of several machines may write
    the same file. The folder is created where it is missing. When the block raises, the temporary file is removed and
    an older file at `path` stays as it was.

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
        # Without this a crash of the machine may leave the new name with an empty file.
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
