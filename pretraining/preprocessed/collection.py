"""The index of a preprocessed folder: `index.json` describes the collection, `index.npz` its patients and volumes.

`index.npz` has one column for each property instead of one object for each volume: a million volumes open in a second,
and processes that load crops share the columns, since reading an array does not write to its memory pages, as counting
references to objects does. Imports no nnunetv2.

Columns of `index.npz` (version 3), volumes in the order of their patients:

| column | type | content |
| --- | --- | --- |
| `patients`, `patients_end` | uint8, int64 | identifiers of patients, UTF-8, concatenated; where each ends |
| `paired`, `validation` | bool | of each patient: whether a registered pair; whether in validation |
| `files`, `files_end` | uint8, int64 | paths of volumes inside the folder, UTF-8, concatenated; where each ends |
| `patient` | int64 | of each volume: index of the patient |
| `domain`, `modality` | uint8, uint16 | of each volume: index in DOMAINS; index in `modalities` of `index.json` |
| `shape` | int32 (n, 3) | of each volume: voxels z, y, x |
| `native_spacing` | float32 (n, 3) | of each volume before resampling: mm z, y, x |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.architecture.torch_file import check_zip
from nnunetv2_swinfuse.errors import UPGRADE, InputError
from pretraining.collections.collection import DOMAINS, Collection
from pretraining.preprocessed.splits import TRAIN, VALIDATION
from pretraining.preprocessed.volume_file import StoredGrid

# Folder of the preprocessed volumes, in the collection's folder in nnUNet_preprocessed.
FOLDER = "swinfuse"
INDEX = "index.json"
TABLE = "index.npz"
INDEX_VERSION = 3


@dataclass(frozen=True)
class Strings:
    """A sequence of strings in two arrays.

    Attributes:
        text: all strings, UTF-8, concatenated, uint8.
        ends: where each string ends in `text`, int64.
    """

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
    """The columns of `index.npz`, described at the top of this module."""

    patients: Strings
    paired: np.ndarray
    validation: np.ndarray
    files: Strings
    patient: np.ndarray
    domain: np.ndarray
    modality: np.ndarray
    shape: np.ndarray
    native_spacing: np.ndarray

    @classmethod
    def of(
        cls,
        collection: Collection,
        split: Mapping[str, str],
        modalities: Sequence[str],
        files: Sequence[str],
        grids: Mapping[str, StoredGrid],
    ) -> IndexTable:
        """The columns for a collection.

        Args:
            collection: patients and their volumes.
            split: `train` or `validation` by patient identifier.
            modalities: names, in the order of their indices.
            files: path of each volume inside the folder, in the order of `collection.volumes`.
            grids: grid of each volume, by path.
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
            shape=np.array([grids[name].shape for name in files], np.int32),
            native_spacing=np.array([grids[name].native.spacing for name in files], np.float32),
        )

    def write(self, path: Path) -> None:
        """Writes the columns; a reader never sees an incomplete file."""
        columns: dict[str, np.ndarray] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Strings):
                columns |= {field.name: value.text, f"{field.name}_end": value.ends}
            else:
                columns[field.name] = value
        with atomic_write(path) as temporary:
            np.savez(temporary, **columns)

    @classmethod
    def read(cls, path: Path) -> IndexTable:
        """Reads the columns; raises an exception of whatever kind for a damaged file."""
        with path.open("rb") as file:
            # numpy reads as many bytes as an array has, and so never reaches the checksum after them.
            check_zip(file)
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
        volume_columns = (table.patient, table.domain, table.modality, table.shape, table.native_spacing)
        if any(len(column) != volumes for column in volume_columns):
            raise ValueError("columns of volumes differ in length")
        return table


@dataclass(frozen=True)
class Split:
    """Volumes for training or for validation, by their indices.

    Attributes:
        pairs: CT and MR volume of each registered pair (n, 2).
        ct, mr: all volumes of a domain, including those of pairs.
        unpaired_ct, unpaired_mr: those of a domain that belong to no pair.
    """

    pairs: np.ndarray
    ct: np.ndarray
    mr: np.ndarray
    unpaired_ct: np.ndarray
    unpaired_mr: np.ndarray

    @property
    def pair_probability(self) -> float:
        """Probability of drawing a pair: each pair is drawn as often as a volume of the larger unpaired domain."""
        others = max(len(self.unpaired_ct), len(self.unpaired_mr))
        return len(self.pairs) / (len(self.pairs) + others) if len(self.pairs) else 0.0


class PreprocessedCollection:
    """A folder that preprocessing has completed.

    Attributes:
        folder: the folder.
        name, hash, spacing, modalities: those of the collection; spacing in mm (z, y, x).
        orientation: orientation of all volumes, such as `RAS`.
        crop_size: crop size that the chunks of the files are optimised for (z, y, x).
        header: content of `index.json`.
        table: content of `index.npz`: patients and volumes.
    """

    def __init__(self, folder: Path, header: dict[str, Any], table: IndexTable):
        self.folder = folder
        self.header = header
        self.table = table
        self.name: str = header["name"]
        self.hash: str = header["hash"]
        self.spacing: tuple[float, ...] = tuple(header["spacing"])
        self.modalities: list[str] = header["modalities"]
        self.orientation: str = header["orientation"]
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
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}: damaged ({error!r}); preprocess again with --overwrite") from error
        if version > INDEX_VERSION:
            raise InputError(
                f"{path}: version {version}, this installation reads version {INDEX_VERSION}. To use it, {UPGRADE}"
            )
        if version < INDEX_VERSION:
            raise InputError(
                f"{path}: version {version} of an older installation, this one reads version {INDEX_VERSION}. "
                "Preprocess again with --overwrite"
            )
        try:
            table = IndexTable.read(folder / TABLE)
        except Exception as error:
            # Damaged bytes provoke whatever numpy, zipfile and zlib have to offer.
            raise InputError(
                f"{folder / TABLE}: missing or damaged ({error}); preprocess again with --overwrite"
            ) from error
        try:
            collection = cls(folder, header, table)
            sizes = np.array([collection.spacing, collection.crop_size], float)
            if sizes.shape != (2, 3) or not (sizes > 0).all():
                raise ValueError(f"spacing {collection.spacing}, crop_size {collection.crop_size}")
            return collection
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error!r}); preprocess again with --overwrite") from error

    def split(self, name: str) -> Split:
        """Volumes of `train` or `validation`."""
        table = self.table
        selected = (table.validation == (name == VALIDATION))[table.patient]
        paired = table.paired[table.patient] & selected
        is_ct = table.domain == DOMAINS.index("CT")
        ct_of_pair, mr_of_pair = np.flatnonzero(paired & is_ct), np.flatnonzero(paired & ~is_ct)
        return Split(
            # Volumes are in the order of their patients, and a pair is one CT and one MR.
            np.stack([ct_of_pair, mr_of_pair], axis=1),
            np.flatnonzero(selected & is_ct),
            np.flatnonzero(selected & ~is_ct),
            np.flatnonzero(selected & is_ct & ~paired),
            np.flatnonzero(selected & ~is_ct & ~paired),
        )

    @property
    def split_hash(self) -> str:
        """SHA-256 of which patients are in validation, among collections of the same :attr:`hash`."""
        return hashlib.sha256(np.packbits(self.table.validation).tobytes()).hexdigest()

    def split_by_patient(self) -> dict[str, str]:
        """`train` or `validation` by patient identifier."""
        return {
            self.table.patients[number]: VALIDATION if validation else TRAIN
            for number, validation in enumerate(self.table.validation)
        }

    def file(self, volume: int) -> Path:
        """Path of a volume."""
        return self.folder / self.table.files[volume]

    def patient(self, volume: int) -> str:
        """Identifier of a volume's patient."""
        return self.table.patients[int(self.table.patient[volume])]

    def reading_notes(self, crop_size: Sequence[int]) -> list[str]:
        """Notes for the log on reading crops of this size: padded volumes, and chunks for another crop size."""
        notes, size = [], _format_size(crop_size)
        shares = self.padding_shares(crop_size)
        if small := np.count_nonzero(shares):
            notes.append(
                f"{small} of {len(shares)} volumes are smaller than a crop of {size} voxels along some axis; crops of "
                f"them are padded: on average {shares[shares > 0].mean():.0%} of these crops ({shares.mean():.0%} of "
                "all crops) is padding. Losses that compare voxels or maps leave it out"
            )
        if self.crop_size != tuple(crop_size):
            notes.append(
                f"The chunks of the files are optimised for crops of {_format_size(self.crop_size)} voxels; crops of "
                f"{size} read more than they need. --overwrite with this crop size would rewrite them"
            )
        return notes

    def padding_shares(self, crop_size: Sequence[int]) -> np.ndarray:
        """For each volume, the share of its crops (n,) that is padding: above 0 where it is smaller along some axis."""
        return 1 - (np.minimum(self.table.shape, crop_size) / np.asarray(crop_size)).prod(1)

    def differences(
        self, spacing: Sequence[float] | None, validation_share: float, ct_intensities: Mapping[str, float] | None
    ) -> list[str]:
        """Describes the preprocessing settings that differ from these.

        A spacing of None matches any; intensities of None are those of the collection itself.
        """
        differences = []
        if spacing is not None and not np.allclose(self.spacing, spacing, atol=1e-5):
            differences.append(f"spacing {format_spacing(self.spacing)} in the folder, {format_spacing(spacing)} now")
        if not np.isclose(self.header["validation_share"], validation_share):
            differences.append(
                f"validation_share {self.header['validation_share']} in the folder, {validation_share} now"
            )
        recorded = self.header.get("ct_intensities")
        if recorded != (None if ct_intensities is None else dict(ct_intensities)):
            differences.append(
                f"CT normalised with {_format_intensities(recorded)} in the folder, "
                f"{_format_intensities(ct_intensities)} now (--for a CT dataset takes those of its plans, "
                "--own_normalisation those of the collection)"
            )
        return differences


def _format_intensities(intensities: Mapping[str, float] | None) -> str:
    return "the intensities of the collection" if intensities is None else json.dumps(intensities)


def _format_size(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)


def format_spacing(spacing: Sequence[float]) -> str:
    """A spacing as text, such as `2.5 x 3.92 x 3.92 mm`."""
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm"
