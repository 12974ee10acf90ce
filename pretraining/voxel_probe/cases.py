"""Labelled cases of the voxel probe as tensors: preprocessed, cropped, padded, with labels at half resolution."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.architecture.topology import Triple, triple
from pretraining.preprocessing.fingerprint import Normalisation, signature
from pretraining.preprocessing.labelled import LabelledImage, preprocess_labelled
from pretraining.voxel_probe.datasets import LabelledCase, LabelledDataset

# Folder of the prepared cases, in the dataset's folder in nnUNet_preprocessed.
FOLDER = "voxel_probe"
# A crop that is smaller than its image is moved by up to this share of its size, so that it is not centred exactly.
SHIFT = 0.1
# Changes when the content of the prepared files changes.
VERSION = 2


@dataclass(frozen=True)
class Case:
    """A case of the probe; everything but the image is at half its resolution.

    Attributes:
        name: name of the case.
        image: float32 (1, 1, z, y, x), sizes divisible by 2 and by the strides of the encoders.
        labels: int64 (z / 2, y / 2, x / 2), values of the dataset.
        used: bool, as the labels: voxels of the image that are neither padding nor ignored.
        body: bool, as the labels: those of them that show the body.
    """

    name: str
    image: Tensor
    labels: Tensor
    used: Tensor
    body: Tensor


def load_case(
    case: LabelledCase,
    dataset: LabelledDataset,
    normalisation: Normalisation,
    crop_size: Triple,
    divisor: Sequence[int],
    preprocessed_root: Path,
) -> Case:
    """Loads a case; preprocesses it unless an earlier call has done so.

    Args:
        case: a case of the dataset.
        dataset: the dataset.
        normalisation: spacing and intensities.
        crop_size: at most this many voxels (z, y, x) of the image are used, around the labels.
        divisor: numbers that the padded sizes (z, y, x) are divisible by.
        preprocessed_root: nnUNet_preprocessed, where prepared cases are kept.

    Raises:
        InputError: see :func:`preprocess_labelled`.
    """
    file = preprocessed_root / dataset.name / FOLDER / f"{case.name}_{_origin(case, normalisation)}.npz"
    if file.is_file() and zipfile.is_zipfile(file):
        with np.load(file) as stored:
            image = LabelledImage(stored["voxels"], stored["labels"], stored["body"], float(stored["padding"]))
    else:
        image = preprocess_labelled(case.volume, case.label, normalisation)
        with atomic_write(file) as temporary:
            np.savez(temporary, **image._asdict())
    return make_case(case.name, image, crop_size, divisor, dataset.ignored)


def make_case(
    name: str, image: LabelledImage, crop_size: Triple, divisor: Sequence[int], ignored: int | None = None
) -> Case:
    """Crops a preprocessed image around its labels, pads it at the end of each axis, and halves the labels.

    The crop contains the centre of the labels' bounding box, moved by a tenth of the crop's size at most; the draw
    depends only on the name of the case. The label of a voxel at half resolution is the most frequent of its eight.
    """
    start = _crop_start(name, image.labels, crop_size)
    region = tuple(slice(s, s + size) for s, size in zip(start, crop_size, strict=True))
    voxels, labels, body = image.voxels[region], image.labels[region], image.body[region]
    multiples = [int(np.lcm(2, d)) for d in divisor]
    padding = [(0, -size % multiple) for size, multiple in zip(voxels.shape, multiples, strict=True)]
    used = np.ones(labels.shape, bool) if ignored is None else labels != ignored
    padded = np.pad(voxels, padding, constant_values=image.padding).astype(np.float32)
    halved = halve_labels(torch.from_numpy(np.pad(labels, padding).astype(np.int64)))
    half = [_halve(np.pad(mask, padding)) for mask in (used, body & used)]
    if ignored is not None:
        # The ignored value may be the most frequent of a block of which half is used.
        half = [mask & (halved != ignored) for mask in half]
    return Case(name, torch.from_numpy(padded)[None, None], halved, *half)


def halve_labels(labels: Tensor) -> Tensor:
    """The most frequent label of every 2 x 2 x 2 voxels; the smallest of equally frequent ones.

    Args:
        labels: int64 (z, y, x), sizes divisible by 2.
    """
    z, y, x = (size // 2 for size in labels.shape)
    blocks = labels.reshape(z, 2, y, 2, x, 2).permute(0, 2, 4, 1, 3, 5).reshape(z, y, x, 8)
    return blocks.mode(-1).values


def cases_digest(cases: Sequence[LabelledCase]) -> list[list[str | int]]:
    """What identifies cases in a record: names, and sizes of the files of images and labels."""
    return [[case.name, case.volume.path.stat().st_size, case.label.stat().st_size] for case in cases]


def _origin(case: LabelledCase, normalisation: Normalisation) -> str:
    """Digest of the raw files and the normalisation: another one needs another prepared file."""
    state = case.label.stat()
    label = [str(case.label), state.st_size, state.st_mtime_ns]
    content = json.dumps([VERSION, signature(case.volume), label, asdict(normalisation)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def name_seed(name: str) -> int:
    """A seed that depends on a name alone, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _crop_start(name: str, labels: np.ndarray, crop_size: Triple) -> Triple:
    shifts = np.random.default_rng(name_seed(name)).uniform(-SHIFT, SHIFT, 3) * crop_size
    labelled = np.argwhere(labels > 0)
    box = (labelled.min(0) + labelled.max(0) + 1) / 2 if len(labelled) else np.array(labels.shape) / 2
    start = np.round(box + shifts - np.array(crop_size) / 2).astype(int)
    return triple(start.clip(0, np.maximum(np.array(labels.shape) - crop_size, 0)).tolist())


def _halve(mask: np.ndarray) -> Tensor:
    """Whether at least half of every 2 x 2 x 2 voxels are in the mask."""
    return F.avg_pool3d(torch.from_numpy(mask).float()[None, None], 2)[0, 0] >= 0.5
