"""Names of collections on disk: nnU-Net's numbered datasets, and several collections together.

Standard library only: training on preprocessed volumes finds its folder with this, without the raw data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pretraining.errors import InputError

# nnU-Net looks for dataset 501 among all folders that begin with Dataset501: a joint folder must not.
JOINT = "Joint+"
LONGEST = 200


def dataset_folders(number: str, root: Path) -> list[Path]:
    """Folders of nnU-Net's dataset with this number, `Dataset501_...`; none for another word."""
    if not re.fullmatch(r"\d{1,3}", number):
        return []
    return sorted(path for path in root.glob(f"Dataset{int(number):03d}_*") if path.is_dir())


def joint_name(names: Sequence[str]) -> str:
    """Name of several collections together, the same in whatever order they are named.

    Raises:
        InputError: when it would be too long for a folder.
    """
    name = JOINT + "+".join(sorted(names))
    if len(name) > LONGEST:
        raise InputError(
            f"{len(names)} collections have a name of {len(name)} characters together, more than the {LONGEST} a "
            "folder may have; list their volumes in one pretrain_data.json instead (docs/collections.md)"
        )
    return name


def find_preprocessed(names: Sequence[str], preprocessed_root: Path, folder: str) -> Path:
    """The folder of what was preprocessed under these names, found without the raw data.

    Args:
        names: as on the command line.
        preprocessed_root: nnUNet_preprocessed.
        folder: name of the folder inside.

    Raises:
        InputError: when nothing, or more than one, fits; lists what is there.
    """
    there = sorted(path for path in preprocessed_root.glob(f"*/{folder}") if path.is_dir())
    fitting = [path for path in there if _fits(path.parent.name, names)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(path.parent.name for path in fitting or there) or "nothing"
    raise InputError(
        f"{' '.join(names)}: {'several are' if fitting else 'nothing is'} preprocessed under this name in "
        f"{preprocessed_root}; there is {found}. "
        + ("Give the full name" if fitting else "First run the same command with --preprocess_only")
    )


def _fits(found: str, names: Sequence[str]) -> bool:
    if len(names) == 1:
        return _is(found, names[0])
    parts = found.removeprefix(JOINT).split("+")
    if not found.startswith(JOINT) or len(parts) != len(names):
        return False
    return all(any(_is(part, name) for name in names) for part in parts) and all(
        any(_is(part, name) for part in parts) for name in names
    )


def _is(found: str, name: str) -> bool:
    number = re.fullmatch(r"\d{1,3}", name)
    return found == name or (number is not None and found.startswith(f"Dataset{int(name):03d}_"))
