"""What a preprocessed folder holds: `index.json` for the collection, `index.npz` with a column a property of volumes.

Columns, not objects: a million volumes open in a second, and processes that load crops share them, since reading an
array does not write to its memory as counting references to objects does. Imports no nnunetv2.

Columns of `index.npz` (version 2), volumes in the order of their patients:

| column | type | of |
| --- | --- | --- |
| `patients`, `patients_end` | uint8, int64 | identifiers, UTF-8, one after the other; where each ends |
| `paired`, `validation` | bool | patients: a registered pair; on the validation side |
| `files`, `files_end` | uint8, int64 | paths of volumes inside the folder, UTF-8; where each ends |
| `patient` | int64 | volumes: number of the patient |
| `domain`, `modality` | uint8, uint16 | volumes: number in DOMAINS; number in `modalities` of `index.json` |
| `shape` | int32 (n, 3) | volumes: voxels z, y, x |
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.collections.collection import DOMAINS, Collection
from pretraining.errors import InputError
from pretraining.preprocessed.splits import TRAIN, VALIDATION

# Of a collection, inside its folder in nnUNet_preprocessed.
FOLDER = "swinfuse"
INDEX = "index.json"
TABLE = "index.npz"
INDEX_VERSION = 2


@dataclass(frozen=True)
class Strings:
    """Many strings in two arrays."""

    text: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, strings: Sequence[str]) -> Strings:
        encoded = [string.encode() for string in strings]
        ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        start = self.ends[number - 1] if number else 0
        return self.text[start : self.ends[number]].tobytes().decode()


@dataclass(frozen=True)
class IndexTable:
    """The columns of `index.npz`; see the module."""

    patients: Strings
    paired: np.ndarray
    validation: np.ndarray
    files: Strings
    patient: np.ndarray
    domain: np.ndarray
    modality: np.ndarray
    shape: np.ndarray

    @classmethod
    def of(
        cls,
        collection: Collection,
        split: Mapping[str, str],
        modalities: Sequence[str],
        files: Sequence[str],
        shapes: Mapping[str, Sequence[int]],
    ) -> IndexTable:
        """The columns of a collection.

        Args:
            collection: patients and their volumes.
            split: `train` or `validation` by patient identifier.
            modalities: names, in the order of their numbers.
            files: of each volume, in the order of `collection.volumes`.
            shapes: voxels (z, y, x) by file.
        """
        patients, volumes = collection.patients, collection.volumes
        numbers = {modality: number for number, modality in enumerate(modalities)}
        return cls(
            patients=Strings.of([patient.identifier for patient in patients]),
            paired=np.array([patient.paired for patient in patients], bool),
            validation=np.array([split[patient.identifier] == VALIDATION for patient in patients], bool),
            files=Strings.of(files),
            patient=np.repeat(np.arange(len(patients)), [len(patient.volumes) for patient in patients]),
            domain=np.array([DOMAINS.index(volume.domain) for volume in volumes], np.uint8),
            modality=np.array([numbers[volume.modality] for volume in volumes], np.uint16),
            shape=np.array([shapes[name] for name in files], np.int32),
        )

    def write(self, path: Path) -> None:
        """Writes the columns; a reader never sees half a file."""
        columns: dict[str, np.ndarray] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Strings):
                columns |= {field.name: value.text, f"{field.name}_end": value.ends}
            else:
                columns[field.name] = value
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(temporary, **columns)
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> IndexTable:
        """Raises KeyError, ValueError, OSError or BadZipFile for a damaged file."""
        with np.load(path) as stored:
            columns = {
                field.name: Strings(stored[field.name], stored[f"{field.name}_end"])
                if f"{field.name}_end" in stored
                else stored[field.name]
                for field in fields(cls)
            }
        table = cls(**columns)
        patients, volumes = len(table.patients), len(table.files)
        if not len(table.paired) == len(table.validation) == patients:
            raise ValueError("columns of patients differ in length")
        if not len(table.patient) == len(table.domain) == len(table.modality) == len(table.shape) == volumes:
            raise ValueError("columns of volumes differ in length")
        return table


@dataclass(frozen=True)
class Split:
    """Volumes of one side of the split, by their numbers in the index.

    Attributes:
        pairs: CT and MR volume of each registered pair (n, 2).
        ct, mr: every volume of a domain, those of pairs included.
        unpaired_ct, unpaired_mr: how many volumes of a domain belong to no pair.
    """

    pairs: np.ndarray
    ct: np.ndarray
    mr: np.ndarray
    unpaired_ct: int
    unpaired_mr: int

    @property
    def pair_probability(self) -> float:
        """How often a pair is drawn: each pair as often as a volume of the larger unpaired domain."""
        others = max(self.unpaired_ct, self.unpaired_mr)
        return len(self.pairs) / (len(self.pairs) + others) if len(self.pairs) else 0.0


class PreprocessedCollection:
    """A folder that preprocessing has completed.

    Attributes:
        folder: the folder.
        name, hash, spacing, modalities: of the collection; spacing in mm (z, y, x).
        crop_size: crops that the files are divided for (z, y, x).
        header: the content of `index.json`.
        table: patients and volumes.
    """

    def __init__(self, folder: Path, header: dict[str, Any], table: IndexTable):
        self.folder = folder
        self.header = header
        self.table = table
        self.name: str = header["name"]
        self.hash: str = header["hash"]
        self.spacing: tuple[float, ...] = tuple(header["spacing"])
        self.modalities: list[str] = header["modalities"]
        self.crop_size: tuple[int, ...] = tuple(header["crop_size"])

    @classmethod
    def open(cls, folder: Path) -> PreprocessedCollection:
        """Reads `index.json` and `index.npz`.

        Raises:
            InputError: when one is missing, damaged or of another version.
        """
        path = folder / INDEX
        if not path.is_file():
            raise InputError(
                f"{path}: missing; preprocessing has not been completed. Run swinfuse_pretrain "
                "-d NAME --preprocess_only"
            )
        try:
            header = json.loads(path.read_text())
            version = int(header["version"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: damaged ({error!r}); preprocess again with --overwrite") from error
        if version > INDEX_VERSION:
            raise InputError(
                f"{path}: version {version}, this installation reads version {INDEX_VERSION}. "
                "Upgrade with: pip install --upgrade nnunetv2-swinfuse"
            )
        if version < INDEX_VERSION:
            raise InputError(
                f"{path}: version {version} of an older installation, this one reads version {INDEX_VERSION}. "
                "Preprocess again with --overwrite"
            )
        try:
            table = IndexTable.read(folder / TABLE)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{folder / TABLE}: missing or damaged ({error}); preprocess again with --overwrite"
            ) from error
        try:
            return cls(folder, header, table)
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: damaged ({error!r}); preprocess again with --overwrite") from error

    def split(self, name: str) -> Split:
        """Volumes of `train` or `validation`."""
        table = self.table
        inside = (table.validation == (name == VALIDATION))[table.patient]
        paired = table.paired[table.patient] & inside
        is_ct = table.domain == DOMAINS.index("CT")
        ct_of_pair, mr_of_pair = np.flatnonzero(paired & is_ct), np.flatnonzero(paired & ~is_ct)
        return Split(
            # Volumes are in the order of their patients, and a pair is one CT and one MR.
            np.stack([ct_of_pair, mr_of_pair], axis=1),
            np.flatnonzero(inside & is_ct),
            np.flatnonzero(inside & ~is_ct),
            int((inside & is_ct & ~paired).sum()),
            int((inside & ~is_ct & ~paired).sum()),
        )

    def sides(self) -> dict[str, str]:
        """`train` or `validation` by patient identifier."""
        return {
            self.table.patients[number]: VALIDATION if validation else TRAIN
            for number, validation in enumerate(self.table.validation)
        }

    def file(self, volume: int) -> Path:
        return self.folder / self.table.files[volume]

    def patient(self, volume: int) -> str:
        """Identifier of a volume's patient."""
        return self.table.patients[int(self.table.patient[volume])]

    def reading_notes(self, crop_size: Sequence[int]) -> list[str]:
        """What a run should say about reading crops of this size here: padding, and chunks made for another size."""
        notes = []
        if small := self.smaller_than(crop_size):
            notes.append(
                f"{small} of {len(self.table.files)} volumes are smaller than a crop of {_sizes(crop_size)} voxels "
                "along some axis; crops of them are padded"
            )
        if self.crop_size != tuple(crop_size):
            notes.append(
                f"Files are divided for crops of {_sizes(self.crop_size)} voxels; crops of {_sizes(crop_size)} read "
                "more than they need. --overwrite with this crop size would divide them anew"
            )
        return notes

    def smaller_than(self, crop_size: Sequence[int]) -> int:
        """How many volumes are smaller than a crop along some axis, and will be padded."""
        return int((self.table.shape < np.asarray(crop_size)).any(axis=1).sum())

    def differences(self, spacing: Sequence[float] | None, validation_share: float) -> list[str]:
        """In words, the settings it was made with that differ from these; a spacing of None fits any."""
        differing = []
        if spacing is not None and not np.allclose(self.spacing, spacing, atol=1e-5):
            differing.append(f"spacing {millimetres(self.spacing)} there, {millimetres(spacing)} now")
        if not np.isclose(self.header["validation_share"], validation_share):
            differing.append(f"validation_share {self.header['validation_share']} there, {validation_share} now")
        return differing


def _sizes(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)


def millimetres(spacing: Sequence[float]) -> str:
    """A spacing in words, such as `2.5 x 3.92 x 3.92 mm`."""
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm"
