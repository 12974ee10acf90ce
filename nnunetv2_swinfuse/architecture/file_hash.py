"""SHA-256 of files; standard library only, so that commands which need no network start without PyTorch."""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK = 2**20


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
