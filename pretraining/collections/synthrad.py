"""SynthRAD2023 and SynthRAD2025 (Thummerer et al.): a folder per patient with ct, mr or cbct, and mask.

`Task1/brain/1BA001/{ct,mr,mask}.nii.gz` in 2023, `Task1/AB/1ABA005/{ct,mr,mask}.mha` in 2025. The collection's folder
may be any of these levels, or up to two levels above. Volumes of a patient are registered, on one grid.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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

LAYOUT = "SynthRAD"
MODALITIES: dict[str, tuple[str, Domain]] = {"ct": ("CT", "CT"), "cbct": ("CBCT", "CT"), "mr": ("MR", "MR")}
# As archives are unpacked: NAME/Task1/brain/1BA001, and up to two folders above the task.
MAX_DEPTH = 5


def matches(root: Path) -> bool:
    """Whether a folder at most five levels below `root` holds a ct, cbct or mr volume."""
    return any(_named_volumes(folder) for folder in _folders(root))


def read(name: str, root: Path) -> Collection:
    """All patients below `root`, also those without CT or without MR.

    Raises:
        InputError: when two folders have the same patient name, or a patient has a modality or the mask twice, or only
            a mask; for images in formats that are not read, and for volumes in folders that are deeper.
    """
    patients: dict[str, tuple[Path, Patient]] = {}
    folders = _folders(root)
    _refuse_deeper(root, folders)
    for folder in folders:
        named = [path for path in sorted(folder.iterdir()) if path.name.lower().split(".")[0] in (*MODALITIES, "mask")]
        refuse_other_formats(named)
        files = _named_volumes(folder)
        masks = [path for path in sorted(folder.iterdir()) if volume_stem(path) == "mask"]
        if len(masks) > 1:
            raise InputError(f"two files for one mask: {masks[0]} and {masks[1]}; remove one of them")
        if masks and not files:
            raise InputError(
                f"{masks[0]}: a mask without its image; restore ct or mr in the same folder, or remove the folder"
            )
        if not files:
            continue
        volumes = tuple(
            Volume(*MODALITIES[stem], path, masks[0] if masks else None) for stem, path in sorted(files.items())
        )
        domains = [volume.domain for volume in volumes]
        if folder.name in patients:
            raise InputError(
                f"patient {folder.name} is in {patients[folder.name][0]} and in {folder}; rename or remove one of them"
            )
        paired = domains.count("CT") == 1 and domains.count("MR") == 1
        patients[folder.name] = (folder, Patient(folder.name, volumes, paired))
    return Collection(name, LAYOUT, root, tuple(patient for _, (_, patient) in sorted(patients.items())))


def _folders(root: Path) -> list[Path]:
    level, folders = [root], []
    for _ in range(MAX_DEPTH):
        level = sorted(
            child for folder in level for child in folder.iterdir()
            if child.is_dir() and not _is_left_out(child.name)
        )  # fmt: skip
        folders += level
    return folders


def _is_left_out(name: str) -> bool:
    return name.lower() == "overview" or name.startswith(".")


def _refuse_deeper(root: Path, folders: Sequence[Path]) -> None:
    """Raises InputError for a volume below the folders that are read, which would be left out silently."""
    for last in folders:
        if len(last.relative_to(root).parts) < MAX_DEPTH:
            continue
        for folder, children, files in os.walk(last):
            children[:] = sorted(child for child in children if not _is_left_out(child))
            named = [file for file in sorted(files) if (volume_stem(Path(file)) or "").lower() in MODALITIES]
            if Path(folder) != last and named:
                raise InputError(
                    f"{folder}: {named[0]} is more than {MAX_DEPTH} folders below {root}, where no patients are "
                    "looked for; move them up, or make one of the folders above them a collection of nnUNet_raw"
                )


def _named_volumes(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = volume_stem(path)
        # Broken links are kept, to be reported as unreadable: the patient must not silently lose a modality.
        if stem is None or stem.lower() not in MODALITIES or path.is_dir():
            continue
        if stem.lower() in files:
            raise InputError(f"two files for one modality: {files[stem.lower()]} and {path}; remove one of them")
        files[stem.lower()] = path
    return files
