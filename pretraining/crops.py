"""From preprocessed volumes to batches of CT and MR crops. Imports no nnunetv2: this runs on a bare GPU node."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from torch.utils.data import Dataset

from nnunetv2_swinfuse.architecture.topology import Triple
from pretraining.errors import InputError
from pretraining.index import PreprocessedCollection, Split
from pretraining.splits import SPLITS

# Key of the foreground points in a file's metadata: little-endian int16 (n, 3), z, y, x.
FOREGROUND = "foreground"
# Key of the intensity that stands outside the volume.
PADDING = "padding"
# Mapping of files does not work on Windows (nnU-Net's issue 2723).
MAPPED = {} if os.name == "nt" else {"mmap_mode": "r"}


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
        if split not in SPLITS:
            raise ValueError(f"split {split!r}; expected one of {', '.join(SPLITS)}")
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
        random = np.random.default_rng([self.seed, SPLITS.index(self.split_name), self.rank, step])
        elements = [self._draw(random) for _ in range(self.batch_size)]
        return {
            "ct": torch.from_numpy(np.stack([element[0] for element in elements])),
            "mr": torch.from_numpy(np.stack([element[1] for element in elements])),
            "paired": torch.tensor([element[2] for element in elements]),
            "patients": [element[3] for element in elements],
        }

    def _draw(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool, tuple[str, str]]:
        collection, split = self.collection, self.split
        if random.random() < split.pair_probability:
            ct_volume, mr_volume = split.pairs[random.integers(len(split.pairs))]
            ct, start = self._crop(collection.file(ct_volume), random)
            mr, _ = self._crop(collection.file(mr_volume), random, start)
            patient = collection.patient(ct_volume)
            return ct, mr, True, (patient, patient)
        ct_volume = split.ct[random.integers(len(split.ct))]
        mr_volume = split.mr[random.integers(len(split.mr))]
        ct, _ = self._crop(collection.file(ct_volume), random)
        mr, _ = self._crop(collection.file(mr_volume), random)
        return ct, mr, False, (collection.patient(ct_volume), collection.patient(mr_volume))

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
