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
from pretraining.collections.collection import DOMAINS
from pretraining.preprocessed.collection import PreprocessedCollection, Split
from pretraining.preprocessed.splits import SPLITS
from pretraining.preprocessed.turnable import turnable_volumes
from pretraining.preprocessed.volume_file import foreground_points, open_volume, read_crop


class Element(NamedTuple):
    """One sample of a batch.

    Attributes:
        crops: one (1, z, y, x) for each domain, in the order of the dataset's domains.
        paired: whether CT and MR are registered crops of one patient.
        patients: the patient of each crop.
        turnable: whether each crop may be turned by quarters; a registered pair only if both of its crops may.
    """

    crops: tuple[np.ndarray, ...]
    paired: bool
    patients: tuple[str, ...]
    turnable: tuple[bool, ...]


class CropDataset(Dataset):
    """Batches of CT and MR crops; sample `n` of item `step` depends only on the seed, the split, `step` and `n`.

    Therefore a resumed run continues with the crops of the uninterrupted run, the sampler has no state to save, and
    processes that train together load the parts of the batch that a single process would load whole.

    Args:
        collection: the preprocessed volumes.
        split: `train` or `validation`.
        crop_size: voxels (z, y, x).
        batch_size: pairs of crops in a step, over all processes.
        seed: of all draws.
        foreground_share: probability that a crop is centred on a point of the body, not on any voxel.
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
        domains: Sequence[str] = DOMAINS,
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
        self.domains = tuple(domains)

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
            `ct` and `mr`, float32 (B, 1, z, y, x); `paired`, bool (B,); `patients`, a list of B tuples (patient of the
            CT, patient of the MR); `ct_turnable` and `mr_turnable`, bool (B,), which crops may be turned by quarters.
            With one domain there are only its keys, `paired` is False and the tuples have one element.

        Raises:
            InputError: naming a volume that is missing or damaged.
        """
        if not 0 <= step < self.steps:
            raise IndexError(step)
        keys = [self.seed, SPLITS.index(self.split_name), step]
        draw = self._draw if len(self.domains) > 1 else self._draw_one_domain
        elements = [draw(np.random.default_rng([*keys, sample])) for sample in self.samples]
        crops = {
            domain.lower(): torch.from_numpy(np.stack([element.crops[number] for element in elements]))
            for number, domain in enumerate(self.domains)
        }
        turnable = {
            f"{domain.lower()}_turnable": torch.tensor([element.turnable[number] for element in elements])
            for number, domain in enumerate(self.domains)
        }
        return {
            **crops,
            **turnable,
            "paired": torch.tensor([element.paired for element in elements]),
            "patients": [element.patients for element in elements],
        }

    def _draw(self, random: np.random.Generator) -> Element:
        collection, split = self.collection, self.split
        if random.random() < split.pair_probability:
            ct_volume, mr_volume = split.pairs[random.integers(len(split.pairs))]
            ct, start = self._crop(collection.file(ct_volume), random)
            mr, _ = self._crop(collection.file(mr_volume), random, start)
            patient = collection.patient(ct_volume)
            turnable = bool(self.turnable[ct_volume] and self.turnable[mr_volume])
            return Element((ct, mr), True, (patient, patient), (turnable, turnable))
        ct_volume = split.ct[random.integers(len(split.ct))]
        mr_volume = split.mr[random.integers(len(split.mr))]
        ct, _ = self._crop(collection.file(ct_volume), random)
        mr, _ = self._crop(collection.file(mr_volume), random)
        patients = collection.patient(ct_volume), collection.patient(mr_volume)
        return Element((ct, mr), False, patients, (bool(self.turnable[ct_volume]), bool(self.turnable[mr_volume])))

    def _draw_one_domain(self, random: np.random.Generator) -> Element:
        volumes = self.split.ct if self.domains == ("CT",) else self.split.mr
        volume = volumes[random.integers(len(volumes))]
        crop, _ = self._crop(self.collection.file(volume), random)
        return Element((crop,), False, (self.collection.patient(volume),), (bool(self.turnable[volume]),))

    def _crop(
        self, file: Path, random: np.random.Generator, start: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads a crop (1, z, y, x), at a drawn place unless `start` is passed; returns the crop and its start."""
        volume = open_volume(file)
        if start is None:
            points = foreground_points(file, volume)
            shape, crop = np.array(volume.shape[1:]), np.array(self.crop_size)
            start = draw_start(points, shape, crop, self.foreground_share, random)
        return read_crop(file, volume, start, self.crop_size), start


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
