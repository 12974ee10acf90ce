"""A collection: patients, each with volumes of named modalities, paired or not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.modality_names import Domain

DOMAINS: tuple[Domain, ...] = get_args(Domain)
# Of all preprocessed volumes; nnU-Net's reorienting readers use the same.
ORIENTATION = "RAS"
ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd")
# Of images that are not read.
OTHER_ENDINGS = (".mhd", ".nhdr", ".hdr", ".img", ".mgz", ".mgh", ".mnc", ".dcm", ".ima", ".mif", ".nii.bz2", ".nii.xz")


@dataclass(frozen=True)
class Volume:
    """One image file.

    Attributes:
        modality: its name, such as CT, CBCT or MR.
        domain: the block of the Domain Invariance Module that it belongs to.
        path: the file.
        mask: mask of the body, on the same grid, or None.
        removed: mask of what anonymisation has removed, such as the face, on the same grid, or None.
        name: distinguishes it from the patient's other volumes; empty where the modality does.
    """

    modality: str
    domain: Domain
    path: Path
    mask: Path | None = None
    removed: Path | None = None
    name: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The image and its masks."""
        return tuple(path for path in (self.path, self.mask, self.removed) if path is not None)


@dataclass(frozen=True)
class Patient:
    """A patient's volumes; all of them are used for training, or all for validation.

    Attributes:
        identifier: unique in the collection; its parts, such as data set and subject, are separated by `/`.
        volumes: at least one.
        paired: whether the volumes are one CT and one MR that are registered, on the same grid.
    """

    identifier: str
    volumes: tuple[Volume, ...]
    paired: bool

    def domains(self) -> set[Domain]:
        return {volume.domain for volume in self.volumes}


@dataclass(frozen=True)
class Collection:
    """Patients of one folder, or of several that are used together.

    Attributes:
        name: name of the folder, and of the folders of preprocessed data and results.
        layout: name of the reader that recognised it.
        root: the folder, or the parent of several.
        patients: sorted by identifier.
    """

    name: str
    layout: str
    root: Path
    patients: tuple[Patient, ...]

    @property
    def volumes(self) -> tuple[Volume, ...]:
        return tuple(volume for patient in self.patients for volume in patient.volumes)

    @property
    def hash(self) -> str:
        """SHA-256 of identifiers, pairing, modalities, names and sizes of images and masks; not of the voxels."""
        digest = hashlib.sha256()
        for patient in self.patients:
            digest.update(f"{patient.identifier}|{patient.paired}\n".encode())
            for volume in patient.volumes:
                digest.update(f"{volume.domain}|{volume.modality}|{self._identity(volume.path)}\n".encode())
                for role, mask in (("mask", volume.mask), ("removed", volume.removed)):
                    if mask is not None:
                        digest.update(f"{role}|{self._identity(mask)}\n".encode())
        return digest.hexdigest()

    def _identity(self, file: Path) -> str:
        """Path, inside the root where it is there, and size of a file."""
        path = file.relative_to(self.root) if file.is_relative_to(self.root) else file
        return f"{path}|{file.stat().st_size}"

    def summary(self) -> str:
        """One line with the numbers of patients, pairs, CT and MR volumes."""
        pairs = sum(patient.paired for patient in self.patients)
        counts = {domain: sum(volume.domain == domain for volume in self.volumes) for domain in DOMAINS}
        return (
            f"Collection {self.name} ({self.layout}): {len(self.patients)} patients, {pairs} paired, "
            f"{counts['CT']} CT and {counts['MR']} MR volumes"
        )


def leave_out(collection: Collection, identifiers: Sequence[str]) -> Collection:
    """The collection without some patients, such as those on which an encoder will be tested.

    Raises:
        InputError: for an identifier that the collection does not have, or when no patient is left.
    """
    known = {patient.identifier for patient in collection.patients}
    unknown = sorted(set(identifiers) - known)
    if unknown:
        raise InputError(
            f"--leave_out: {len(unknown)} patient(s) are not in {collection.name}: {', '.join(unknown[:5])}. Its "
            f"identifiers are such as {', '.join(sorted(known)[:3])}"
        )
    kept = tuple(patient for patient in collection.patients if patient.identifier not in set(identifiers))
    if not kept:
        raise InputError(f"--leave_out: all {len(known)} patients of {collection.name} are left out")
    return replace(collection, patients=kept)


def require_domains(collection: Collection, domains: Sequence[str] = DOMAINS) -> None:
    """Raises InputError when a collection has no volume of one of the domains that a run uses."""
    for domain in domains:
        if any(volume.domain == domain for volume in collection.volumes):
            continue
        others = [other for other in DOMAINS if any(volume.domain == other for volume in collection.volumes)]
        single = f", or train on a single modality with --modalities {others[0]}" if others else ""
        raise InputError(
            f"{collection.name}: no {domain} volume ({collection.layout} layout), but the run uses "
            f"{' and '.join(domains)}. Add another collection, such as -d {collection.name} OTHER{single}; "
            "see swinfuse_pretrain --list"
        )


def volume_stem(path: Path) -> str | None:
    """File name without its ending; None if the file is not a volume."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending) and not path.name.startswith("."):
            return path.name[: -len(ending)]
    return None


def refuse_other_formats(files: Iterable[Path]) -> None:
    """Raises InputError for images in formats that are not read, which would be left out silently."""
    others = [file for file in files if file.name.lower().endswith(OTHER_ENDINGS) and not file.name.startswith(".")]
    if others:
        raise InputError(
            f"{len(others)} image(s) in formats that are not read, such as {others[0]}; convert them to one of "
            f"{', '.join(ENDINGS)}, or move them away"
        )
