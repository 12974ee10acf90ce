"""The images that encoders are analysed on: crops of two domains, of a preprocessed collection or of labelled datasets.

The domains are CT and MR of a collection, registered crops where it has pairs, or the images of two labelled datasets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple
from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import DOMAINS
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessed.crops import draw_start
from pretraining.preprocessed.splits import SPLITS
from pretraining.preprocessed.volume_file import foreground_points, open_volume, read_crop

if TYPE_CHECKING:
    from pretraining.preprocessing.fingerprint import Normalisation
    from pretraining.voxel_probe.datasets import LabelledDataset

ALL = "all"


@dataclass(frozen=True)
class Crop:
    """A crop of one image.

    Attributes:
        image: float32 (1, 1, z, y, x), normalised.
        patient: whom it shows.
        classes: int64 (z / 2, y / 2, x / 2), 0 for background; None without labels.
    """

    image: Tensor
    patient: str
    classes: Tensor | None = None


@dataclass(frozen=True)
class Domain:
    """Crops of one domain.

    Attributes:
        name: `CT`, `MR`, or such as `511 (CT)` for a labelled dataset.
        crops: of different patients in turn, so that neighbours in this order are of different patients.
    """

    name: str
    crops: tuple[Crop, ...]

    @property
    def patients(self) -> list[str]:
        """The patient of each crop."""
        return [crop.patient for crop in self.crops]


@dataclass(frozen=True)
class CropSets:
    """Crops of two domains.

    Attributes:
        first, second: the domains.
        registered: crop i of both domains shows the same place of the same patient.
        spacing: of the voxels, mm (z, y, x).
        classes: names of the classes by their value, without background; empty without labels.
        source: where the crops come from, for the record.
    """

    first: Domain
    second: Domain
    registered: bool
    spacing: tuple[float, ...]
    classes: Mapping[int, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, str]:
        """Of both domains."""
        return self.first.name, self.second.name

    def __iter__(self) -> Iterator[Domain]:
        return iter((self.first, self.second))


def collection_crops(
    collection: PreprocessedCollection, split: str, crop_size: Triple, count: int, seed: int
) -> CropSets:
    """Draws crops around points of the body: registered ones if the split has two pairs or more.

    Args:
        collection: the preprocessed volumes.
        split: `train`, `validation`, or `all` for both.
        crop_size: voxels (z, y, x).
        count: crops of each modality, divided equally among the patients.
        seed: of the draw.

    Raises:
        InputError: when fewer than two patients of the split have CT, or MR, or a volume is damaged.
    """
    splits = [collection.split(name) for name in (SPLITS if split == ALL else (split,))]
    pairs = np.concatenate([part.pairs for part in splits])
    random = np.random.default_rng(seed)
    registered = len(pairs) >= 2
    if registered:
        pairs = random.permutation(pairs)
        volumes = [pairs[:, 0], pairs[:, 1]]
    else:
        volumes = [random.permutation(np.concatenate([getattr(part, d.lower()) for part in splits])) for d in DOMAINS]
    for domain, of_domain in zip(DOMAINS, volumes, strict=True):
        patients = {collection.patient(volume) for volume in of_domain}
        if len(patients) < 2:
            raise InputError(
                f"{collection.folder}: {len(patients)} patient(s) with {domain} in the split {split!r}, expected two "
                "or more; use --split all, or another collection"
            )
    crops: list[list[Crop]] = [[], []]
    in_turn = [_patients_in_turn(collection, of_domain, count) for of_domain in volumes]
    for drawn in zip(*in_turn, strict=True):
        start = None
        for domain_crops, volume in zip(crops, drawn, strict=True):
            file = collection.file(volume)
            stored = open_volume(file)
            if start is None or not registered:
                points, shape = foreground_points(file, stored), np.array(stored.shape[1:])
                start = draw_start(points, shape, np.array(crop_size), 1.0, random)
            image = torch.from_numpy(read_crop(file, stored, start, crop_size))[None]
            domain_crops.append(Crop(image, collection.patient(volume)))
    ct, mr = (Domain(name, tuple(of_domain)) for name, of_domain in zip(DOMAINS, crops, strict=True))
    source = {
        "collection": collection.name, "hash": collection.hash, "split": split, "registered": registered,
        "crop_size": list(crop_size), "crops": count, "patients": {d.name: len(set(d.patients)) for d in (ct, mr)},
    }  # fmt: skip
    return CropSets(ct, mr, registered, collection.spacing, {}, source)


def _patients_in_turn(collection: PreprocessedCollection, volumes: Sequence[int], count: int) -> list[int]:
    """Volumes to draw `count` crops from: one of each patient, then the next one of each patient, and so on."""
    by_patient: dict[str, list[int]] = {}
    for volume in volumes:
        by_patient.setdefault(collection.patient(volume), []).append(int(volume))
    of_patients = list(by_patient.values())
    in_turn = []
    for number in range(count):
        turn, patient = divmod(number, len(of_patients))
        in_turn.append(of_patients[patient][turn % len(of_patients[patient])])
    return in_turn


def labelled_crops(
    datasets: Sequence[LabelledDataset],
    normalisation: Normalisation,
    crop_size: Triple,
    divisor: Triple,
    count: int,
    seed: int,
    preprocessed_root: Path,
) -> CropSets:
    """One crop around the labels of each of some cases of two labelled datasets.

    Args:
        datasets: two of them.
        normalisation: spacing and intensities.
        crop_size: at most so many voxels (z, y, x) of an image are used.
        divisor: numbers that the padded sizes (z, y, x) are divisible by.
        count: cases of each dataset, all if it has fewer.
        seed: of the draw of the cases.
        preprocessed_root: nnUNet_preprocessed, where prepared cases are kept.

    Raises:
        InputError: see :func:`pretraining.voxel_probe.cases.load_case`.
    """
    # These import nnunetv2, which takes seconds.
    from pretraining.voxel_probe.cases import load_case
    from pretraining.voxel_probe.datasets import label_key
    from pretraining.voxel_probe.probe import classes_of

    names = {label_key(name): name for dataset in reversed(datasets) for name in dataset.labels.values()}
    labels = list(dict.fromkeys(label_key(name) for dataset in datasets for name in dataset.labels.values()))
    domains = []
    for dataset in datasets:
        order = np.random.default_rng(seed).permutation(len(dataset.cases))[:count]
        crops = []
        for case in (dataset.cases[index] for index in order):
            loaded = load_case(case, dataset, normalisation, crop_size, divisor, preprocessed_root)
            crops.append(Crop(loaded.image, f"{dataset.number} {case.name}", classes_of(loaded, dataset, labels)))
        domains.append(Domain(f"{dataset.number} ({dataset.cases[0].volume.domain})", tuple(crops)))
    first, second = domains
    source = {
        "datasets": [dataset.name for dataset in datasets], "normalisation": asdict(normalisation),
        "crop_size": list(crop_size), "cases": {domain.name: domain.patients for domain in domains},
    }  # fmt: skip
    classes = {value: names[key] for value, key in enumerate(labels, 1)}
    return CropSets(first, second, False, normalisation.spacing, classes, source)
