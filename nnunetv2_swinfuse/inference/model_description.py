"""What a trained model says of the images it was trained on: read from its JSON files, no weights, nothing imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_swinfuse.errors import InputError, reading
from nnunetv2_swinfuse.imaging.grid import Grid
from nnunetv2_swinfuse.imaging.modality_names import KNOWN, Domain, plain_name
from nnunetv2_swinfuse.imaging.orientation import reoriented
from nnunetv2_swinfuse.inference.model_files import compare_with_manifest
from nnunetv2_swinfuse.inference.training_images import RECORD, find_orientations
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, FINGERPRINT_FILE, PLANS_FILE, REORIENTING_READER

# A plans.json of 40 stages has some 20 kB; what is larger than this is no such file.
LARGEST_JSON = 64 * 1024**2
# Readers of nnU-Net that turn every image the same way first: the stored orientation does not matter to them.
REORIENTING = (REORIENTING_READER, "NibabelIOWithReorient")


@dataclass(frozen=True)
class Channel:
    """An input channel of a model.

    Attributes:
        name: as in dataset.json, such as `CT` or `T1`.
        domain: CT or MR; None for another modality.
        masked: whether nnU-Net normalises inside the nonzero region only.
        intensities: statistics of the labelled training voxels: min, percentile_00_5, median, percentile_99_5, max.
    """

    name: str
    domain: Domain | None
    masked: bool
    intensities: Mapping[str, float]


@dataclass(frozen=True)
class ModelDescription:
    """A model's expectations.

    Attributes:
        folder: of the model.
        dataset: nnU-Net's name of it.
        file_ending: of images and masks, such as `.nii.gz`.
        channels: in order.
        spacings: mm, (training images, 3), axes (z, y, x) as the model's reader turns them.
        extents: mm after cropping to nonzero, (training images, 3), in the same axes.
        orientations: codes of the training images, such as `LPS`; None when not known or when they do not matter.
        orientation_source: where they come from, or why they are not compared.
        labels: as in dataset.json.
        plans, dataset_json: the files' content.
    """

    folder: Path
    dataset: str
    file_ending: str
    channels: tuple[Channel, ...]
    spacings: np.ndarray
    extents: np.ndarray
    orientations: frozenset[str] | None
    orientation_source: str
    labels: Mapping[str, Any]
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of reasonable size.

    Raises:
        InputError: naming the file, when it is missing, too large, cannot be read, is no JSON, or no object.
    """
    with reading(path):
        if not path.is_file():
            raise InputError(
                f"{path}: no such file. It belongs to every trained model of nnU-Net; copy the whole folder"
            )
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise InputError(f"{path}: {size} bytes, expected at most {LARGEST_JSON}; not a file of nnU-Net")
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged or no JSON ({type(error).__name__}: {error}); copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def describe_model(folder: Path) -> ModelDescription:
    """Reads plans.json, dataset.json, dataset_fingerprint.json and the record of orientations in a model's folder.

    Raises:
        InputError: naming the file, when one is missing, damaged, cannot be read, differs from the model's manifest, or
            does not say what the checks need.
    """
    with reading(folder):
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder. -m takes a model's folder, the one that holds plans.json and fold_0"
            )
    plans, dataset_json = read_json(folder / PLANS_FILE), read_json(folder / DATASET_FILE)
    fingerprint = read_json(folder / FINGERPRINT_FILE)
    compare_with_manifest(folder, (PLANS_FILE, DATASET_FILE, FINGERPRINT_FILE, RECORD))
    try:
        channels = _channels(plans, dataset_json, fingerprint)
        spacings = np.array(fingerprint["spacings"], float).reshape(-1, 3)
        extents = np.array(fingerprint["shapes_after_crop"], float).reshape(-1, 3) * spacings
        if len(spacings) == 0 or not np.isfinite(extents).all() or (spacings <= 0).any() or (extents <= 0).any():
            raise ValueError("spacings or shapes of the training images are missing or not positive")
        ending = dataset_json["file_ending"]
        if not isinstance(ending, str) or not ending.startswith("."):
            raise ValueError(f"file_ending {ending!r}")
        reader, dataset = str(plans.get("image_reader_writer")), str(plans["dataset_name"])
        labels = dict(dataset_json["labels"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{folder}: plans.json, dataset.json and dataset_fingerprint.json do not describe a model of nnU-Net v2 "
            f"({type(error).__name__}: {error}); copy the model again"
        ) from error
    orientations, source = _orientations(folder, dataset, ending, reader, len(spacings) * len(channels))
    return ModelDescription(
        folder=folder, dataset=dataset, file_ending=ending, channels=channels, spacings=spacings, extents=extents,
        orientations=orientations, orientation_source=source, labels=labels, plans=plans, dataset_json=dataset_json,
    )  # fmt: skip


def grid_as_read(grid: Grid, plans: Mapping[str, Any]) -> Grid:
    """The grid of the array that nnU-Net computes on, by its plans: some of its readers turn every image to RAS first.

    The spacings and shapes in a model's fingerprint are those of such arrays.
    """
    return reoriented(grid, "RAS") if plans.get("image_reader_writer") in REORIENTING else grid


def domain_of(name: str) -> Domain | None:
    """CT or MR by the name of a channel; None for another modality."""
    return KNOWN.get(plain_name(name))


def _channels(
    plans: Mapping[str, Any], dataset_json: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> tuple[Channel, ...]:
    names = dataset_json.get("channel_names") or dataset_json["modality"]
    statistics = fingerprint["foreground_intensity_properties_per_channel"]
    blocks = [block for block in plans["configurations"].values() if "normalization_schemes" in block]
    schemes, masks = blocks[0]["normalization_schemes"], blocks[0]["use_mask_for_norm"]
    if not (0 < len(names) == len(schemes) == len(masks) == len(statistics)):
        raise ValueError(f"{len(names)} channels, {len(schemes)} normalisations, {len(statistics)} of statistics")
    channels = []
    for number, scheme in enumerate(schemes):
        name = str(names[str(number)])
        domain: Domain | None = "CT" if scheme == "CTNormalization" else domain_of(name)
        known = {key: float(value) for key, value in statistics[str(number)].items()}
        for needed in ("min", "percentile_00_5", "median", "percentile_99_5", "max"):
            if not np.isfinite(known[needed]):
                raise ValueError(f"{needed} of channel {number} is {known[needed]}")
        channels.append(Channel(name, domain, bool(masks[number]), known))
    return tuple(channels)


def _orientations(
    folder: Path, dataset: str, ending: str, reader: str, number: int
) -> tuple[frozenset[str] | None, str]:
    if reader in REORIENTING:
        return None, f"{reader} turns all images the same way"
    found = find_orientations(folder, dataset, ending, number)
    if found is not None:
        return frozenset(found[0]), str(found[1])
    return None, (
        f"the model does not say how its training images were oriented: no {RECORD} in {folder} (swinfuse_export "
        f"writes it), and nnUNet_raw does not have the {number} files of its training images"
    )
