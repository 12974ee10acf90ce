"""Files that are complete or absent, locks that end with their process, and SHA-256 of the content of files."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write

BLOCK = 2**20


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: nobody reads half of it."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def content_sha256(path: Path) -> str:
    """SHA-256 of a file; for `.gz` of the uncompressed content, so that compressing it again changes nothing."""
    digest = hashlib.sha256()
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def joined_sha256(parts: Iterable[str]) -> str:
    """One digest of several texts; their order does not matter."""
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


@contextlib.contextmanager
def locked(path: Path, busy: str = "") -> Iterator[IO[str]]:
    """Holds an exclusive lock on a file; waits for the process that has it, and says `busy` before.

    Children that inherit the file keep the lock: a training that outlives the killed benchmark that started it is
    seen by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy:
                print(f"{path}: held by another process. {busy}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        # Closing ends this process's hold. LOCK_UN would end that of the children as well.
        yield file
