"""From a name on the command line to a collection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pretraining.collections import folder_pair, synthrad
from pretraining.collections.collection import DOMAINS, Collection
from pretraining.errors import InputError


def find_collection(name: str, raw_root: Path, unpaired: bool = False) -> Collection:
    """The collection in `raw_root/name`, whatever its layout.

    Args:
        name: folder in nnUNet_raw.
        raw_root: the folder nnUNet_raw.
        unpaired: take no CT and MR for registered.

    Raises:
        InputError: for an unknown name (lists what is there), an unknown layout, or one without CT or without MR.
    """
    if name in ("", "..") or Path(name).name != name:
        raise InputError(f"collection {name!r}: expected the name of a folder in {raw_root}, not a path")
    root = raw_root / name
    if not root.is_dir():
        there = sorted(path.name for path in raw_root.iterdir() if path.is_dir())
        raise InputError(
            f"collection {name!r} is not in {raw_root}; there {'are ' + ', '.join(there) if there else 'is nothing'}. "
            "To try with made volumes: swinfuse_demo --data_only writes a collection 'SynthRAD' there"
        )
    if folder_pair.matches(root):
        collection = folder_pair.read(name, root, unpaired)
    elif synthrad.matches(root):
        collection = synthrad.read(name, root)
        if unpaired:
            patients = tuple(replace(patient, paired=False) for patient in collection.patients)
            collection = replace(collection, patients=patients)
    else:
        raise InputError(
            f"{root}: no volumes in a known layout. Expected folders ct/ and mr/, or a folder per patient with ct, mr "
            "and mask (SynthRAD), files of .nii.gz, .nii, .mha or .nrrd"
        )
    for domain in DOMAINS:
        if not any(volume.domain == domain for volume in collection.volumes):
            raise InputError(f"{root}: no {domain} volume ({collection.layout} layout); SwinFUSE needs both CT and MR")
    return collection
