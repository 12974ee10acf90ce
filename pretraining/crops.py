"""From preprocessed volumes to batches of CT and MR crops. Imports no nnunetv2: this runs on a bare GPU node."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from torch.utils.data import Dataset

from nnunetv2_swinfuse.architecture.topology import Triple
from pretraining.errors import InputError

INDEX = "index.json"
INDEX_VERSION = 1
# Key of the foreground points in a file's metadata: little-endian int16 (n, 3), z, y, x.
FOREGROUND = "foreground"
# Key of the intensity that stands outside the volume.
PADDING = "padding"
# Mapping of files does not work on Windows (nnU-Net's issue 2723).
MAPPED = {} if os.name == "nt" else {"mmap_mode": "r"}
SPLIT_NUMBER = {"train": 0, "validation": 1}


@dataclass(frozen=True)
class Split:
    """Files of one side of the split, as needed to draw from them.

    Attributes:
        pairs: CT file, MR file and patient of each registered pair.
        ct, mr: file and patient of every volume of a domain, those of pairs included.
        unpaired_ct, unpaired_mr: how many volumes of a domain belong to no pair.
    """

    pairs: list[tuple[Path, Path, str]]
    ct: list[tuple[Path, str]]
    mr: list[tuple[Path, str]]
    unpaired_ct: int
    unpaired_mr: int

    @property
    def pair_probability(self) -> float:
        """How often a pair is drawn: each pair as often as a volume of the larger unpaired domain."""
        others = max(self.unpaired_ct, self.unpaired_mr)
        return len(self.pairs) / (len(self.pairs) + others) if self.pairs else 0.0


class PreprocessedCollection:
    """A folder that preprocessing has completed.

    Attributes:
        folder: the folder.
        name, hash, spacing: of the collection; spacing in mm (z, y, x).
        normalisation: how intensities were normalised, as in `index.json`.
        patients: as in `index.json`.
    """

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder = folder
        self.name: str = index["name"]
        self.hash: str = index["hash"]
        self.spacing: tuple[float, ...] = tuple(index["spacing"])
        self.normalisation: dict[str, Any] = index.get("normalisation", {})
        self.patients: list[dict[str, Any]] = index["patients"]

    @classmethod
    def open(cls, folder: Path) -> PreprocessedCollection:
        """Reads `index.json`.

        Raises:
            InputError: when it is missing, damaged or of a newer version.
        """
        path = folder / INDEX
        if not path.is_file():
            raise InputError(f"{path}: missing; preprocessing has not been completed. Run swinfuse_pretrain -d NAME")
        try:
            index = json.loads(path.read_text())
            version = int(index["version"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: damaged ({error!r}); preprocess again with --overwrite") from error
        if version > INDEX_VERSION:
            raise InputError(
                f"{path}: version {version}, this installation reads up to {INDEX_VERSION}. "
                "Upgrade with: pip install --upgrade nnunetv2-swinfuse"
            )
        try:
            return cls(folder, index)
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: damaged ({error!r}); preprocess again with --overwrite") from error

    def split(self, name: str) -> Split:
        """Files of `train` or `validation`."""
        pairs, by_domain, unpaired = [], {"CT": [], "MR": []}, {"CT": 0, "MR": 0}  # type: ignore[var-annotated]
        for patient in self.patients:
            if patient["split"] != name:
                continue
            files = {}
            for volume in patient["volumes"]:
                path = self.folder / volume["file"]
                files[volume["domain"]] = path
                by_domain[volume["domain"]].append((path, patient["identifier"]))
                unpaired[volume["domain"]] += not patient["paired"]
            if patient["paired"]:
                pairs.append((files["CT"], files["MR"], patient["identifier"]))
        return Split(pairs, by_domain["CT"], by_domain["MR"], unpaired["CT"], unpaired["MR"])


class CropDataset(Dataset):
    """Batches of CT and MR crops; item `step` is a function of the seed, the split, the rank and the step alone.

    A run that is resumed at a step therefore sees the crops it would have seen, and no sampler has state.

    Args:
        collection: the preprocessed volumes.
        split: `train` or `validation`.
        crop_size: voxels (z, y, x).
        batch_size: pairs of crops in an item.
        seed: of all draws.
        foreground_share: probability that a crop is centred on a point of the body, not on any voxel.
        rank: number of the process among those that train together.
        steps: number of items.

    Raises:
        ValueError: for an unknown split, or a size that is not positive.
    """

    def __init__(
        self,
        collection: PreprocessedCollection,
        split: str,
        crop_size: tuple[int, ...],
        batch_size: int,
        *,
        seed: int,
        foreground_share: float = 0.67,
        rank: int = 0,
        steps: int,
    ):
        if split not in SPLIT_NUMBER:
            raise ValueError(f"split {split!r}; expected one of {', '.join(SPLIT_NUMBER)}")
        if len(crop_size) != 3 or min(crop_size) < 1 or batch_size < 1:
            raise ValueError(f"crop size {crop_size}, batch size {batch_size}; expected three sizes, all above 0")
        self.collection = collection
        self.split_name = split
        self.crop_size: Triple = (crop_size[0], crop_size[1], crop_size[2])
        self.batch_size = batch_size
        self.seed = seed
        self.foreground_share = foreground_share
        self.rank = rank
        self.steps = steps

    @cached_property
    def split(self) -> Split:
        return self.collection.split(self.split_name)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        """`ct` and `mr` float32 (B, 1, z, y, x), `paired` bool (B,), `patients` [(of the CT, of the MR)] * B."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        random = np.random.default_rng([self.seed, SPLIT_NUMBER[self.split_name], self.rank, step])
        elements = [self._draw(random) for _ in range(self.batch_size)]
        return {
            "ct": torch.from_numpy(np.stack([element[0] for element in elements])),
            "mr": torch.from_numpy(np.stack([element[1] for element in elements])),
            "paired": torch.tensor([element[2] for element in elements]),
            "patients": [element[3] for element in elements],
        }

    def _draw(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool, tuple[str, str]]:
        if random.random() < self.split.pair_probability:
            ct_file, mr_file, patient = self.split.pairs[random.integers(len(self.split.pairs))]
            ct, start = self._crop(ct_file, random)
            mr, _ = self._crop(mr_file, random, start)
            return ct, mr, True, (patient, patient)
        ct_file, ct_patient = self.split.ct[random.integers(len(self.split.ct))]
        mr_file, mr_patient = self.split.mr[random.integers(len(self.split.mr))]
        return self._crop(ct_file, random)[0], self._crop(mr_file, random)[0], False, (ct_patient, mr_patient)

    def _crop(
        self, file: Path, random: np.random.Generator, start: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A crop (1, z, y, x) of a file and where it starts; at `start` if given."""
        volume = open_volume(file)
        shape, crop = np.array(volume.shape[1:]), np.array(self.crop_size)
        if start is None:
            points = np.frombuffer(_metadata(file, volume, FOREGROUND), dtype="<i2").reshape(-1, 3)
            start = draw_start(points, shape, crop, self.foreground_share, random)
        first, last = np.maximum(start, 0), np.minimum(start + crop, shape)
        # Only the chunks that the crop touches are read.
        region = (slice(None), *(slice(int(a), int(b)) for a, b in zip(first, last, strict=True)))
        data = volume[region]
        before, after = first - start, start + crop - last
        if before.any() or after.any():
            padding = [(0, 0), *((int(b), int(a)) for b, a in zip(before, after, strict=True))]
            data = np.pad(data, padding, constant_values=_metadata(file, volume, PADDING))
        return np.ascontiguousarray(data, dtype=np.float32), start


def draw_start(
    points: np.ndarray, shape: np.ndarray, crop: np.ndarray, foreground_share: float, random: np.random.Generator
) -> np.ndarray:
    """First voxel of a crop (z, y, x); negative along an axis on which the volume is smaller and will be padded.

    Args:
        points: voxels of the body (n, 3), maybe none.
        shape, crop: sizes of the volume and of the crop.
        foreground_share: probability that the crop is centred on one of the points.
        random: source of the draw.
    """
    if len(points) and random.random() < foreground_share:
        centre = points[random.integers(len(points))].astype(np.int64)
    else:
        centre = np.array([random.integers(size) for size in shape])
    inside = np.clip(centre - crop // 2, 0, np.maximum(shape - crop, 0))
    return np.where(shape >= crop, inside, -((crop - shape) // 2))


def open_volume(file: Path) -> blosc2.NDArray:
    """Opens a preprocessed volume without reading it.

    Raises:
        InputError: naming the file, when it is missing or damaged.
    """
    try:
        return blosc2.open(str(file), mode="r", dparams={"nthreads": 1}, **MAPPED)
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{file}: missing or damaged ({error}); preprocess again with --overwrite") from error


def _metadata(file: Path, volume: blosc2.NDArray, name: str) -> Any:
    try:
        return volume.schunk.vlmeta[name]
    except (RuntimeError, KeyError) as error:
        raise InputError(f"{file}: damaged, or of an older version; preprocess again with --overwrite") from error
