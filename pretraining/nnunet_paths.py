"""The folders of nnU-Net's path variables."""

from __future__ import annotations

import os
from pathlib import Path

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.nnunet_names import RAW


def required_paths(*names: str) -> tuple[Path, ...]:
    """The folders of nnU-Net's path variables.

    Raises:
        InputError: listing all variables that are not set, or when nnUNet_raw is no folder.
    """
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"not set: {', '.join(missing)}. These are nnU-Net's path variables; for example: "
            + " ".join(f"export {name}=/data/{name}" for name in missing)
        )
    paths = {name: Path(os.environ[name]) for name in names}
    if RAW in paths and not paths[RAW].is_dir():
        raise InputError(f"{RAW} is {paths[RAW]}, which is no folder; expected the folder that contains the collection")
    return tuple(paths.values())
