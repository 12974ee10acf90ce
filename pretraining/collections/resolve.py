"""Finds the collection that names on the command line refer to, and reads it in its layout."""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections import folder_pair, nnssl, nnunet_raw, synthrad
from pretraining.collections.collection import Collection
from pretraining.collections.modalities import ModalityMap
from pretraining.collections.names import JOINT, dataset_folders, joint_name

NNSSL_RAW = "nnssl_raw"
# Of two files of the same size, to find out whether they can be equal.
COMPARED_BYTES = 1 << 16
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
    """Joins all named collections; the identifiers of patients of several collections start with `NAME/`.

    Args:
        names: folders in nnUNet_raw, or the numbers of nnU-Net datasets.
        raw_root: the folder nnUNet_raw.
        modalities: which modality is CT and which MR.
        unpaired: treat no CT and MR as registered.
        different_patients: identifiers that several collections share belong to different patients.

    Raises:
        InputError: as :func:`find_collection`; for a name that occurs twice; for a file in two collections; and for
            identifiers that several collections share, unless `different_patients`.
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
    """The collection in `raw_root/name`, in any of the layouts.

    Args:
        name: folder in nnUNet_raw, or in nnssl_raw if that is set; or the number of an nnU-Net dataset.
        raw_root: the folder nnUNet_raw.
        unpaired: treat no CT and MR as registered.
        modalities: which modality is CT and which MR, for layouts that name them.

    Raises:
        InputError: for an unknown or ambiguous name (lists the existing folders), an unknown layout, or no volumes.
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
        raise InputError(f"{root}: no volumes ({collection.layout} layout), or all are left out. {LAYOUTS}")
    return collection


def find_folder(name: str, raw_root: Path) -> Path:
    """The folder of a collection, by its name or the number of an nnU-Net dataset."""
    if name in ("", "..") or Path(name).name != name or name.startswith(JOINT):
        raise InputError(
            f"collection {name!r}: expected the name of a folder in {raw_root} or the number of a dataset, not a path"
        )
    roots = search_roots(raw_root)
    folders = [root / name for root in roots if (root / name).is_dir()]
    if not folders:
        folders = [folder for root in roots for folder in dataset_folders(name, root)]
    if not folders:
        existing = sorted({path.name for root in roots for path in root.iterdir() if path.is_dir()})
        raise InputError(
            f"collection {name!r} is not in {' or '.join(str(root) for root in roots)}; "
            f"there {'are ' + ', '.join(existing) if existing else 'is nothing'}. "
            "For a trial with synthetic volumes: swinfuse_demo --data_only writes a collection 'SynthRAD' there"
        )
    if len(folders) > 1:
        raise InputError(
            f"collection {name!r} is ambiguous: {', '.join(str(path) for path in folders)}; give the full name, or "
            "rename or remove one of them"
        )
    return folders[0]


def search_roots(raw_root: Path) -> list[Path]:
    """Folders in which collections are searched: nnUNet_raw, and nnssl_raw if that is another folder."""
    nnssl_root = os.environ.get(NNSSL_RAW)
    if nnssl_root and Path(nnssl_root).is_dir() and not raw_root.samefile(nnssl_root):
        return [raw_root, Path(nnssl_root)]
    return [raw_root]


def _refuse_duplicates(collections: Sequence[Collection], different_patients: bool) -> None:
    """Raises InputError for a patient in two collections, who might be in training and in validation."""
    identical = [f"{first} and {second}" for first, second in _copies(collections)]
    if identical:
        raise InputError(
            f"{len(identical)} volume(s) are in two collections, so they could be in training and in validation: "
            f"{_first_few(identical)}. Leave one of the collections out, or remove the copies"
        )
    seen: dict[str, Collection] = {}
    shared: list[str] = []
    for collection in collections:
        for patient in collection.patients:
            # nnssl's dataset/subject without the dataset, whose numbers differ between collections.
            subject = patient.identifier.rpartition("/")[2]
            other = seen.setdefault(subject, collection)
            if other is not collection:
                shared.append(f"{subject} ({other.name} and {collection.name})")
    if shared and not different_patients:
        raise InputError(
            f"{len(shared)} patient identifier(s) are in two collections: {_first_few(shared)}. If these are the same "
            "patients, leave one of the collections out, or move their volumes into one; if they are different "
            "patients, add --different_patients"
        )


def _copies(collections: Sequence[Collection]) -> list[tuple[Path, Path]]:
    """Pairs of equal files of different collections, whatever their names; unreadable ones are left to later checks."""
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for collection in collections:
        for volume in collection.volumes:
            if volume.path.is_file() and os.access(volume.path, os.R_OK):
                by_size[volume.path.stat().st_size].append((collection.name, volume.path))
    # Few files have the same size, and hardly any of these the same bytes in the middle: those are read completely.
    by_content: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for size, files in by_size.items():
        if len({name for name, _ in files}) > 1:
            for name, path in files:
                by_content[f"{size} {_middle(path)}"].append((name, path))
    return [
        (first, second)
        for files in by_content.values()
        for (name, first), (other, second) in combinations(files, 2)
        if name != other and filecmp.cmp(first, second, shallow=False)
    ]


def _middle(path: Path) -> str:
    """Digest of the bytes in the middle of a file."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - COMPARED_BYTES, 0) // 2)
        return hashlib.sha256(file.read(COMPARED_BYTES)).hexdigest()


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
