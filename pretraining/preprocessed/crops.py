"""From preprocessed volumes to batches of CT and MR crops. Imports no nnunetv2: this runs on a bare GPU node."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from nnunetv2_swinfuse.architecture.topology import Triple
from pretraining.collections.collection import DOMAINS, Domain
from pretraining.preprocessed.batches import BatchDraw
from pretraining.preprocessed.collection import PreprocessedCollection, Split
from pretraining.preprocessed.splits import SPLITS
from pretraining.preprocessed.turnable import turnable_volumes
from pretraining.preprocessed.volume_file import foreground_points, open_volume, part_inside, read_crop


class Element(NamedTuple):
    """One sample of a batch.

    Attributes:
        crops: one (1, z, y, x) for each domain, in the order of the dataset's domains.
        inside: of each crop, the part that lies inside the volume (3, 2), see :func:`part_inside`.
        registered: whether CT and MR show the same place of one patient, voxel by voxel.
        patients: the patient of each crop.
        turnable: whether each crop may be turned by quarters; a registered pair only if both of its crops may.
    """

    crops: tuple[np.ndarray, ...]
    inside: tuple[np.ndarray, ...]
    registered: bool
    patients: tuple[str, ...]
    turnable: tuple[bool, ...]


class CropDataset(Dataset):
    """Batches of CT and MR crops of different patients; an item depends only on the seed, the split and its step.

    Therefore a resumed run continues with the crops of the uninterrupted run, the sampler has no state to save, and
    processes that train together load the parts of the batch that a single process would load.

    Args:
        collection: the preprocessed volumes.
        split: `train` or `validation`.
        crop_size: voxels (z, y, x).
        batch_size: pairs of crops in a step, over all processes.
        seed: seed of all draws.
        foreground_share: probability that a crop is centred on a point of the body instead of any voxel.
        steps: number of items.
        samples: indices in the batch that this process loads; all when None.
        domains: `CT`, `MR` or both; items contain only these.

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
        steps: int,
        samples: range | None = None,
        domains: Sequence[Domain] = DOMAINS,
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
        self.steps = steps
        self.samples = range(batch_size) if samples is None else samples
        self.domains: tuple[Domain, ...] = tuple(domains)

    @cached_property
    def split(self) -> Split:
        return self.collection.split(self.split_name)

    @cached_property
    def turnable(self) -> np.ndarray:
        """Of each volume, whether its crops may be turned by quarters: see :mod:`pretraining.preprocessed.turnable`."""
        return turnable_volumes(self.collection, self.crop_size)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Loads the batch of a step.

        Returns:
            `ct` and `mr`, float32 (B, 1, z, y, x); `ct_inside` and `mr_inside`, int64 (B, 3, 2), the part of each crop
            that is no padding: first voxel, and the one after the last, along z, y, x; `ct_turnable` and `mr_turnable`,
            bool (B,), which crops may be turned by quarters; `registered`, bool (B,); `patients`, a list of B tuples
            (patient of the CT, patient of the MR). With one domain there are only its keys, `registered` is False and
            the tuples have one element.

        Raises:
            InputError: naming a volume that is missing or damaged.
        """
        if not 0 <= step < self.steps:
            raise IndexError(step)
        keys = [self.seed, SPLITS.index(self.split_name), step]
        # Every process draws the volumes of the whole batch. Its key has four parts, because NumPy pads keys with zeros
        # and sample 0 would draw the same numbers.
        batch = BatchDraw(self.split, self.collection.table.patient, np.random.default_rng([*keys, self.batch_size]))
        volumes = [self._draw_volumes(batch) for _ in range(self.batch_size)]
        elements = [self._element(*volumes[sample], np.random.default_rng([*keys, sample])) for sample in self.samples]
        crops = {
            domain.lower(): torch.from_numpy(np.stack([element.crops[number] for element in elements]))
            for number, domain in enumerate(self.domains)
        }
        inside = {
            f"{domain.lower()}_inside": torch.from_numpy(np.stack([element.inside[number] for element in elements]))
            for number, domain in enumerate(self.domains)
        }
        turnable = {
            f"{domain.lower()}_turnable": torch.tensor([element.turnable[number] for element in elements])
            for number, domain in enumerate(self.domains)
        }
        return {
            **crops,
            **inside,
            **turnable,
            "registered": torch.tensor([element.registered for element in elements]),
            "patients": [element.patients for element in elements],
        }

    def _draw_volumes(self, batch: BatchDraw) -> tuple[tuple[int, ...], bool]:
        if len(self.domains) > 1:
            ct, mr, registered = batch.sample()
            return (ct, mr), registered
        return (batch.volume(self.domains[0]),), False

    def _element(self, volumes: tuple[int, ...], registered: bool, random: np.random.Generator) -> Element:
        crops, parts_inside, start = [], [], None
        for volume in volumes:
            crop, inside, crop_start = self._crop(self.collection.file(volume), random, start)
            crops.append(crop)
            parts_inside.append(inside)
            start = crop_start if registered else None
        turnable = [bool(self.turnable[volume]) for volume in volumes]
        if registered:
            turnable = [all(turnable)] * len(volumes)
        patients = tuple(self.collection.patient(volume) for volume in volumes)
        return Element(tuple(crops), tuple(parts_inside), registered, patients, tuple(turnable))

    def _crop(
        self, file: Path, random: np.random.Generator, start: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reads a crop, at a drawn place unless `start` is passed.

        Returns:
            The crop (1, z, y, x), its part inside the volume (3, 2) and its start (3,).
        """
        volume = open_volume(file)
        shape = volume.shape[1:]
        if start is None:
            points = foreground_points(file, volume)
            start = draw_start(points, np.array(shape), np.array(self.crop_size), self.foreground_share, random)
        crop = read_crop(file, volume, start, self.crop_size)
        return crop, part_inside(shape, start, self.crop_size), start


def draw_start(
    points: np.ndarray, shape: np.ndarray, crop: np.ndarray, foreground_share: float, random: np.random.Generator
) -> np.ndarray:
    """Draws the first voxel of a crop (z, y, x); negative along an axis where the volume is smaller than the crop.

    Args:
        points: voxels of the body (n, 3); may be empty.
        shape, crop: sizes of the volume and of the crop.
        foreground_share: probability that the crop is centred on one of the points.
        random: random generator.
    """
    if len(points) and random.random() < foreground_share:
        centre = points[random.integers(len(points))].astype(np.int64)
    else:
        centre = np.array([random.integers(size) for size in shape])
    inside = np.clip(centre - crop // 2, 0, np.maximum(shape - crop, 0))
    return np.where(shape >= crop, inside, -((crop - shape) // 2))
