"""Two folders of volumes, `ct/` and `mr/`. The same file name in both is one patient, a registered pair by default."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import (
    Collection,
    Domain,
    Patient,
    Volume,
    refuse_other_formats,
    volume_stem,
)

LAYOUT = "folder pair"
FOLDERS: dict[str, Domain] = {"ct": "CT", "mr": "MR"}


def matches(root: Path) -> bool:
    """Whether `ct/` or `mr/` exists and holds volumes that are not named after modalities."""
    return any(_volumes(root / folder) for folder in FOLDERS)


def read(name: str, root: Path, unpaired: bool = False) -> Collection:
    """Patients of both folders.

    Args:
        name: name of the collection.
        root: folder that holds `ct/` and `mr/`.
        unpaired: files of the same name belong to one patient but are not registered.

    Raises:
        InputError: for two files of one volume, and for images that would not be read: other formats, inner folders.
    """
    volumes: dict[str, list[Volume]] = {}
    for folder, domain in FOLDERS.items():
        if (root / folder).is_dir():
            _refuse_what_is_not_read(root / folder)
        for stem, path in _volumes(root / folder).items():
            volumes.setdefault(stem, []).append(Volume(domain, domain, path))
    return Collection(
        name,
        LAYOUT,
        root,
        tuple(Patient(stem, tuple(pair), len(pair) == 2 and not unpaired) for stem, pair in sorted(volumes.items())),
    )


def _refuse_what_is_not_read(folder: Path) -> None:
    entries = sorted(folder.iterdir())
    refuse_other_formats(entries)
    for child in entries:
        if child.is_dir() and not child.name.startswith(".") and any(volume_stem(path) for path in child.iterdir()):
            raise InputError(
                f"{child}: a folder with volumes inside of {folder.name}/, where only files are read; move its volumes "
                f"to {folder}, or the folder away"
            )


def _volumes(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    if not folder.is_dir():
        return files
    for path in sorted(folder.iterdir()):
        stem = volume_stem(path)
        # Such names belong to the SynthRAD layout, for instance if a patient's folder is called "ct".
        if stem is None or stem.lower() in ("ct", "mr", "cbct", "mask"):
            continue
        if stem in files:
            raise InputError(f"two files for one volume: {files[stem]} and {path}; remove one of them")
        files[stem] = path
    return files
