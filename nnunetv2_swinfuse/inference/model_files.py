"""The files of a model's folder: its folds, and whether they are the files that its manifest lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from nnunetv2_swinfuse.architecture.file_hash import file_hash as sha256
from nnunetv2_swinfuse.errors import InputError, reading
from nnunetv2_swinfuse.inference.manifest import MANIFEST, Manifest, parse_manifest

FINAL_CHECKPOINT = "checkpoint_final.pth"
FOLD_OF_ALL = "fold_all"
_FOLD = re.compile(r"fold_([0-9]+|all)")


def find_folds(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> list[str]:
    """Names of the folders of a model's folds, such as `fold_0`, in the order in which nnU-Net averages them.

    Other folders, such as `fold_0_backup`, are no folds.

    Args:
        folder: the model's.
        folds: such as `0` or `all`; None for all numbered folds that have the checkpoint, or else `fold_all`.
        checkpoint: name of the file in each fold's folder.

    Raises:
        InputError: when a fold is no fold by its name, or has no such file, when there is none, or when the folder
            cannot be read.
    """
    if Path(checkpoint).name != checkpoint:
        raise InputError(f"-chk {checkpoint}: expected the name of a file in the folds' folders")
    if folds is None:
        found = {path.parent.name for path in folder.glob(f"fold_*/{checkpoint}")}
        names = sorted(name for name in found if _FOLD.fullmatch(name) and name != FOLD_OF_ALL)
        names = names or sorted(found & {FOLD_OF_ALL})
    else:
        names = [f"fold_{fold}" for fold in dict.fromkeys(map(str, folds))]
    for name in names:
        if not _FOLD.fullmatch(name):
            raise InputError(f"-f {name.removeprefix('fold_')}: no fold; expected a number, or `all`")
    with reading(folder):
        missing = [name for name in names if not (folder / name / checkpoint).is_file()]
    if missing or not names:
        raise InputError(
            f"{folder}: no {checkpoint} in {', '.join(missing) or 'any fold'}; train it first, or name other folds (-f)"
        )
    return names


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an installed model; None for a model that `swinfuse_export` did not write.

    Raises:
        InputError: when it is damaged or cannot be read.
    """
    path = folder / MANIFEST
    with reading(path):
        return parse_manifest(path.read_bytes(), path) if path.is_file() else None


def compare_with_manifest(folder: Path, names: Iterable[str], progress: bool = False) -> dict[str, str]:
    """SHA-256 of files in a model's folder, which must be those of its manifest, where it has one.

    Args:
        folder: the model's.
        names: paths below it. Those that neither exist nor are listed are left out.
        progress: whether to show a progress bar.

    Raises:
        InputError: naming the file, when it is missing, not in the manifest, or another one than in the manifest.
    """
    manifest = read_manifest(folder)
    listed = manifest.files if manifest is not None else {}
    names = [name for name in names if (folder / name).is_file() or name in listed]
    if manifest is not None:
        for name in names:
            if name not in listed:
                raise InputError(f"{folder / name}: {_unlisted(name, listed)}")
    hashes = {}
    for name in tqdm(names, "checking hashes", disable=not progress or len(names) < 2):
        path = folder / name
        if not path.exists():
            raise InputError(f"{path}: missing, but listed in {MANIFEST}; install the model again")
        hashes[name] = file_hash(path)
        if name in listed and hashes[name] != listed[name]["sha256"]:
            raise InputError(
                f"{path} has the SHA-256 {hashes[name]}, {MANIFEST} says {listed[name]['sha256']}: changed or damaged "
                "since its export; install the model again"
            )
    return hashes


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        InputError: when it cannot be read.
    """
    with reading(path):
        return sha256(path)


def _unlisted(name: str, listed: Iterable[str]) -> str:
    folds = sorted({path.split("/")[0].removeprefix("fold_") for path in listed if path.endswith(".pth")})
    remedy = f", or predict with the folds of the manifest (-f {' '.join(folds)})" if name.endswith(".pth") else ""
    return f"not in {MANIFEST}: left from another version of the model, or added later. Delete it{remedy}"
