"""Names of collections on disk: nnU-Net's numbered datasets, and joint names of several collections.

Uses only the standard library: `--train_only` finds its folder with this, without the raw data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_swinfuse.errors import InputError

# The name of a joint folder must not start with Dataset501: nnU-Net takes all folders that do for dataset 501.
JOINT = "Joint+"
MAX_LENGTH = 200


def dataset_folders(number: str, root: Path) -> list[Path]:
    """Folders of the nnU-Net dataset with this number, `Dataset501_...`; none if the text is not a number."""
    if not re.fullmatch(r"\d{1,3}", number):
        return []
    return sorted(path for path in root.glob(f"Dataset{int(number):03d}_*") if path.is_dir())


def joint_name(names: Sequence[str]) -> str:
    """Joint name of several collections, independent of their order.

    Raises:
        InputError: when it would be too long for a folder.
    """
    name = JOINT + "+".join(sorted(names))
    if len(name) > MAX_LENGTH:
        raise InputError(
            f"the joint name of {len(names)} collections has {len(name)} characters, more than the {MAX_LENGTH} that a "
            "folder may have; list their volumes in one pretrain_data.json instead (docs/collections.md)"
        )
    return name


def find_preprocessed(names: Sequence[str], preprocessed_root: Path, folder: str) -> Path:
    """Finds the preprocessed folder of collections without their raw data.

    Args:
        names: names of the collections, as on the command line.
        preprocessed_root: nnUNet_preprocessed.
        folder: name of the folder of preprocessed volumes in the folder of a collection.

    Raises:
        InputError: when no folder matches, or several; lists the existing ones.
    """
    existing = sorted(path for path in preprocessed_root.glob(f"*/{folder}") if path.is_dir())
    matching = [path for path in existing if _matches(path.parent.name, names)]
    if len(matching) == 1:
        return matching[0]
    listing = ", ".join(path.parent.name for path in matching or existing) or "nothing"
    raise InputError(
        f"{' '.join(names)}: {'several are' if matching else 'nothing is'} preprocessed under this name in "
        f"{preprocessed_root}; available: {listing}. "
        + ("Give the full name" if matching else "First run the same command with --preprocess_only")
    )


def _matches(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder is that of the named collections: of a single one, or of all together."""
    if len(names) == 1:
        return _is_named(folder, names[0])
    parts = folder.removeprefix(JOINT).split("+")
    if not folder.startswith(JOINT) or len(parts) != len(names):
        return False
    return all(any(_is_named(part, name) for name in names) for part in parts) and all(
        any(_is_named(part, name) for part in parts) for name in names
    )


def _is_named(folder: str, name: str) -> bool:
    """Whether a folder has a name, or the number of an nnU-Net dataset."""
    number = re.fullmatch(r"\d{1,3}", name)
    return folder == name or (number is not None and folder.startswith(f"Dataset{int(name):03d}_"))
