"""The files of a preprocessed folder: names, which are missing, which part writes which, and the lock."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import Collection, Patient, Volume

Item = TypeVar("Item")


def file_name(patient: Patient, volume: Volume) -> str:
    """Path of a preprocessed volume inside the folder; the parts of an identifier become folders."""
    *folders, last = patient.identifier.split("/")
    parts = (*folders, f"{last}_{volume.name or volume.modality}")
    return "/".join(_portable(part) for part in parts) + ".b2nd"


def _portable(part: str) -> str:
    """A file name that is valid on every operating system."""
    valid = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", part)
    return "_" + valid[1:] if valid.startswith(".") else valid


def file_names(collection: Collection) -> list[str]:
    """Paths of all volumes, in the order of `collection.volumes`; raises InputError if two would be the same."""
    names: dict[str, Path] = {}
    for patient in collection.patients:
        for volume in patient.volumes:
            name = file_name(patient, volume)
            if name in names:
                raise InputError(
                    f"{names[name]} and {volume.path} would both be preprocessed to {name}; rename one of them, or its "
                    "patient"
                )
            names[name] = volume.path
    return list(names)


def count_missing(folder: Path, names: Sequence[str]) -> int:
    """How many of the files are missing; lists the folders, since a million `stat` calls would take minutes."""
    existing = {
        os.path.relpath(os.path.join(root, file), folder).replace(os.sep, "/")
        for root, _, files in os.walk(folder)
        for file in files
    }
    return sum(name not in existing for name in names)


def own_first(items: Sequence[Item], part: int, parts: int) -> list[Item]:
    """All items: first those of this part, then those of the following parts in turn."""
    return [item for offset in range(parts) for item in items[(part + offset) % parts :: parts]]


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Waits until no other process holds the folder, and says so; holds it within.

    The lock is the file `FOLDER.lock` beside the folder. It ends with its process, also when that is killed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    # A network file system without locks raises NotImplementedError: processes then do not wait for each other.
    with suppress(NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{folder}: another process is preprocessing. Waiting for it.", file=sys.stderr, flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove_temporary(folder: Path) -> None:
    """Deletes temporary files of killed processes. Not to be called while another part may be writing."""
    for file in folder.rglob("*.tmp.b2nd"):
        file.unlink(missing_ok=True)
