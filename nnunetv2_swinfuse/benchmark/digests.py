"""SHA-256 of what files hold (one file, many with a cache, all files of some cases) and of settings."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.benchmark.files import write_json

BLOCK = 2**20
# Cache of :func:`file_digests`, in the output folder.
DIGESTS = "digests.json"


def content_sha256(path: Path) -> str:
    """SHA-256 of a file; for `.gz` of the uncompressed content, so that compressing it again changes nothing."""
    digest = hashlib.sha256()
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings, in whatever order they come."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


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


def case_digests(files: Mapping[str, Sequence[Path]], cache: Path) -> dict[str, tuple[str, ...]]:
    """SHA-256 of what the files of each case hold, in their order; `cache` as in :func:`file_digests`."""
    digests = file_digests([path for paths in files.values() for path in paths], cache)
    return {case: tuple(digests[str(path)] for path in paths) for case, paths in files.items()}


def joined_digest(digests: Mapping[str, Sequence[str]]) -> str:
    """One SHA-256 of the names of cases and the digests of their files, in whatever order they come."""
    parts = sorted(f"{case} {digest}" for case, of_case in digests.items() for digest in of_case)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def equal_cases(digests: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Groups of cases whose files hold the same, in the order of their names; empty where all differ."""
    cases: dict[tuple[str, ...], list[str]] = {}
    for case in sorted(digests):
        cases.setdefault(digests[case], []).append(case)
    return [names for names in cases.values() if len(names) > 1]
