"""SHA-256 of what files hold: one file, many with a cache, and one for all files of some cases."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.benchmark.files import write_json

BLOCK = 2**20


def content_sha256(path: Path) -> str:
    """SHA-256 of a file; for `.gz` of the uncompressed content, so that compressing it again changes nothing."""
    digest = hashlib.sha256()
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def file_digests(paths: Sequence[Path], cache: Path) -> dict[str, str]:
    """SHA-256 of what files hold, by path; remembered in `cache` as long as size and time of a file stay."""
    known: dict[str, list[Any]] = json.loads(cache.read_text()) if cache.is_file() else {}
    changed = False
    for path in paths:
        state = path.stat()
        mark = [state.st_size, state.st_mtime_ns]
        if known.get(str(path), [None])[:2] != mark:
            known[str(path)] = [*mark, content_sha256(path)]
            changed = True
    if changed:
        write_json(cache, known)
    return {str(path): known[str(path)][2] for path in paths}


def cases_digest(files: Mapping[str, Sequence[Path]], cache: Path) -> str:
    """One SHA-256 of the names and files of cases, in whatever order they come.

    Args:
        files: of each case.
        cache: see :func:`file_digests`.
    """
    digests = file_digests([path for paths in files.values() for path in paths], cache)
    parts = sorted(f"{case} {digests[str(path)]}" for case, paths in files.items() for path in paths)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def cases_of_equal_files(files: Mapping[str, Sequence[Path]], cache: Path) -> list[list[str]]:
    """Groups of cases whose files hold the same, in the order of their names; empty where all differ.

    Args:
        files: of each case, such as the channels of its image.
        cache: see :func:`file_digests`.
    """
    digests = file_digests([path for paths in files.values() for path in paths], cache)
    cases: dict[tuple[str, ...], list[str]] = {}
    for case in sorted(files):
        cases.setdefault(tuple(digests[str(path)] for path in files[case]), []).append(case)
    return [names for names in cases.values() if len(names) > 1]
