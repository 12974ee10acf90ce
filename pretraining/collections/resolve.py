"""From names on the command line to a collection."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from pretraining.collections import folder_pair, nnssl, nnunet_raw, synthrad
from pretraining.collections.collection import Collection, Patient
from pretraining.collections.modalities import ModalityMap
from pretraining.collections.names import JOINT, dataset_folders, joint_name
from pretraining.errors import InputError

NNSSL_RAW = "nnssl_raw"
LAYOUTS = (
    "Expected pretrain_data.json (nnssl), dataset.json and imagesTr/ (nnU-Net raw), folders ct/ and mr/, or a folder "
    "per patient with ct, mr and mask (SynthRAD); files of .nii.gz, .nii, .mha or .nrrd"
)


def find_collections(
    names: Sequence[str],
    raw_root: Path,
    modalities: ModalityMap | None = None,
    unpaired: bool = False,
    different_patients: bool = False,
) -> Collection:
    """One collection of all that is named; patients of several are told apart by `NAME/` before their identifiers.

    Args:
        names: folders in nnUNet_raw, or the numbers of nnU-Net datasets.
        raw_root: the folder nnUNet_raw.
        modalities: which modality is CT and which MR.
        unpaired: take no CT and MR for registered.
        different_patients: identifiers that several collections share belong to different patients.

    Raises:
        InputError: as :func:`find_collection`; for a name given twice; and for identifiers that several collections
            share, unless they are said to be of different patients and no file is the same.
    """
    collections = [find_collection(name, raw_root, unpaired, modalities) for name in names]
    if len(collections) == 1:
        return collections[0]
    collections.sort(key=lambda collection: collection.name)
    for first, second in pairwise(collections):
        if first.name == second.name:
            raise InputError(f"{first.name} is named twice; name each collection once")
    _refuse_duplicates(collections, different_patients)
    patients = tuple(
        replace(patient, identifier=f"{collection.name}/{patient.identifier}")
        for collection in collections
        for patient in collection.patients
    )
    layouts = " + ".join(sorted({collection.layout for collection in collections}))
    return Collection(joint_name([collection.name for collection in collections]), layouts, raw_root, patients)


def find_collection(
    name: str, raw_root: Path, unpaired: bool = False, modalities: ModalityMap | None = None
) -> Collection:
    """The collection in `raw_root/name`, whatever its layout.

    Args:
        name: folder in nnUNet_raw, or in nnssl_raw where that is set; or the number of an nnU-Net dataset.
        raw_root: the folder nnUNet_raw.
        unpaired: take no CT and MR for registered.
        modalities: which modality is CT and which MR, for layouts that name them.

    Raises:
        InputError: for an unknown or ambiguous name (lists what is there), an unknown layout, or no volume at all.
    """
    root = find_folder(name, raw_root)
    modalities = modalities or ModalityMap()
    if nnssl.matches(root):
        collection = nnssl.read(root.name, root, modalities)
    elif nnunet_raw.matches(root):
        collection = nnunet_raw.read(root.name, root, modalities, unpaired)
    elif folder_pair.matches(root):
        collection = folder_pair.read(root.name, root, unpaired)
    elif synthrad.matches(root):
        collection = synthrad.read(root.name, root)
        if unpaired:
            patients = tuple(replace(patient, paired=False) for patient in collection.patients)
            collection = replace(collection, patients=patients)
    else:
        raise InputError(f"{root}: no volumes in a known layout. {LAYOUTS}")
    if not collection.patients:
        raise InputError(f"{root}: no volumes ({collection.layout} layout), or all of them are left out. {LAYOUTS}")
    return collection


def find_folder(name: str, raw_root: Path) -> Path:
    """The folder that a name or a dataset's number stands for."""
    if name in ("", "..") or Path(name).name != name or name.startswith(JOINT):
        raise InputError(
            f"collection {name!r}: expected the name of a folder in {raw_root} or the number of a dataset, not a path"
        )
    roots = search_roots(raw_root)
    found = [root / name for root in roots if (root / name).is_dir()]
    if not found:
        found = [folder for root in roots for folder in dataset_folders(name, root)]
    if not found:
        there = sorted({path.name for root in roots for path in root.iterdir() if path.is_dir()})
        raise InputError(
            f"collection {name!r} is not in {' or '.join(str(root) for root in roots)}; "
            f"there {'are ' + ', '.join(there) if there else 'is nothing'}. "
            "To try with made volumes: swinfuse_demo --data_only writes a collection 'SynthRAD' there"
        )
    if len(found) > 1:
        raise InputError(
            f"collection {name!r} is ambiguous: {', '.join(str(path) for path in found)}; give the full name, or "
            "rename or remove one of them"
        )
    return found[0]


def search_roots(raw_root: Path) -> list[Path]:
    """Where collections are looked for: nnUNet_raw, and nnssl_raw where it is set to another folder."""
    nnssl_root = os.environ.get(NNSSL_RAW)
    if nnssl_root and Path(nnssl_root).is_dir() and not raw_root.samefile(nnssl_root):
        return [raw_root, Path(nnssl_root)]
    return [raw_root]


def _refuse_duplicates(collections: Sequence[Collection], different_patients: bool) -> None:
    """A patient in two collections would come to both sides of the split."""
    seen: dict[str, tuple[Collection, Patient]] = {}
    shared: list[str] = []
    identical: list[str] = []
    for collection in collections:
        for patient in collection.patients:
            # Of nnssl's dataset/subject, the subject: datasets of other collections are numbered otherwise.
            bare = patient.identifier.rpartition("/")[2]
            other = seen.setdefault(bare, (collection, patient))
            if other[0] is collection:
                continue
            shared.append(f"{bare} ({other[0].name} and {collection.name})")
            identical += [
                f"{ours.path} and {theirs.path}"
                for ours in patient.volumes
                for theirs in other[1].volumes
                if _same_file(ours.path, theirs.path)
            ]
    if identical:
        raise InputError(
            f"{len(identical)} volume(s) are in two collections, which would bring them to both sides of the split: "
            f"{_some(identical)}. Leave one of the collections out, or remove the copies"
        )
    if shared and not different_patients:
        raise InputError(
            f"{len(shared)} patient identifier(s) are in two collections: {_some(shared)}. If these are the same "
            "patients, leave one of the collections out, or bring their volumes into one; if they are different "
            "patients, say so with --different_patients"
        )


def _same_file(first: Path, second: Path) -> bool:
    if not (first.is_file() and second.is_file()):
        return False
    return first.stat().st_size == second.stat().st_size and filecmp.cmp(first, second, shallow=False)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
