"""A collection: patients, each with volumes of named modalities, paired or not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.errors import InputError

Domain = Literal["CT", "MR"]
DOMAINS: tuple[Domain, ...] = ("CT", "MR")
ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd")


@dataclass(frozen=True)
class Volume:
    """One image file.

    Attributes:
        modality: what it is called, such as CT, CBCT or MR.
        domain: the side of the Domain Invariance Module it belongs to.
        path: the file.
        mask: a file that marks the body, on the same grid, or None.
        removed: a file that marks what anonymisation took away, such as a face, on the same grid, or None.
        name: unlike that of the patient's other volumes; empty where the modality is.
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
    """A patient's volumes; all of them go to training or all to validation.

    Attributes:
        identifier: unique in the collection; its parts, such as data set and subject, are divided by `/`.
        volumes: at least one.
        paired: one CT and one MR that lie on the same grid, registered.
    """

    identifier: str
    volumes: tuple[Volume, ...]
    paired: bool

    def domains(self) -> set[Domain]:
        return {volume.domain for volume in self.volumes}


@dataclass(frozen=True)
class Collection:
    """Patients of a folder, or of several that are pretrained on together.

    Attributes:
        name: name of the folder; preprocessed data and results go to folders of this name.
        layout: which reader understood it.
        root: the folder, or the one above several.
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
        """SHA-256 over who is in it: identifiers, pairing, modalities, file names and sizes, not the voxels."""
        digest = hashlib.sha256()
        for patient in self.patients:
            digest.update(f"{patient.identifier}|{patient.paired}\n".encode())
            for volume in patient.volumes:
                inside = volume.path.is_relative_to(self.root)
                relative = volume.path.relative_to(self.root) if inside else volume.path
                digest.update(f"{volume.domain}|{volume.modality}|{relative}|{volume.path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def summary(self) -> str:
        """One line: patients, pairs, CT and MR volumes."""
        pairs = sum(patient.paired for patient in self.patients)
        counts = {domain: sum(volume.domain == domain for volume in self.volumes) for domain in DOMAINS}
        return (
            f"Collection {self.name} ({self.layout}): {len(self.patients)} patients, {pairs} paired, "
            f"{counts['CT']} CT and {counts['MR']} MR volumes"
        )


def require_domains(collection: Collection, domains: Sequence[str] = DOMAINS) -> None:
    """Raises InputError for a collection without a volume of one of the domains that a run learns from."""
    for domain in domains:
        if any(volume.domain == domain for volume in collection.volumes):
            continue
        others = [other for other in DOMAINS if any(volume.domain == other for volume in collection.volumes)]
        alone = f", or train on one alone with --modalities {others[0]}" if others else ""
        raise InputError(
            f"{collection.name}: no {domain} volume ({collection.layout} layout), but the run learns from "
            f"{' and '.join(domains)}. Name another collection as well, such as -d {collection.name} OTHER{alone}; "
            "see swinfuse_pretrain --list"
        )


def volume_stem(path: Path) -> str | None:
    """Name of a volume without its ending; None for a file that is no volume."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending) and not path.name.startswith("."):
            return path.name[: -len(ending)]
    return None
