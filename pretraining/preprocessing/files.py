"""The files of a preprocessed folder: how they are called, which are missing, and who works on which."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.errors import InputError

Item = TypeVar("Item")


def file_name(patient: Patient, volume: Volume) -> str:
    """Path of a preprocessed volume inside the folder; the parts of an identifier become folders."""
    *folders, last = patient.identifier.split("/")
    return "/".join(_plain(part) for part in (*folders, f"{last}_{volume.name or volume.modality}")) + ".b2nd"


def _plain(part: str) -> str:
    """What may be the name of a file on every system."""
    plain = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", part)
    return "_" + plain[1:] if plain.startswith(".") else plain


def file_names(collection: Collection) -> list[str]:
    """Paths of all volumes, in the order of `collection.volumes`; raises InputError where two would have the same."""
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
    """How many of the files are not there; lists folders, since a million single questions would take minutes."""
    there = {
        os.path.relpath(os.path.join(root, file), folder).replace(os.sep, "/")
        for root, _, files in os.walk(folder)
        for file in files
    }
    return sum(name not in there for name in names)


def own_first(items: Sequence[Item], part: int, parts: int) -> list[Item]:
    """All items: those of the part, then those of the next parts in turn."""
    return [item for offset in range(parts) for item in items[(part + offset) % parts :: parts]]


def remove_temporary(folder: Path) -> None:
    """Deletes volumes that killed processes left half-written; not while another part may be writing some."""
    for left in folder.rglob("*.tmp.b2nd"):
        left.unlink(missing_ok=True)
