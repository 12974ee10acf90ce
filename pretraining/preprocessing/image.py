"""One image through nnU-Net's preprocessing: cropping to nonzero, normalisation, resampling; one file per volume."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import Grid
from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.preprocessed.collection import INDEX_VERSION, format_spacing
from pretraining.preprocessed.volume_file import NativeGrid, StoredGrid, VolumeMetadata, grid_if_complete, write_volume
from pretraining.preprocessing.files import file_name
from pretraining.preprocessing.fingerprint import Normalisation, signature
from pretraining.preprocessing.foreground import body_mask, read_volume

# Of the body, stored in each file: crops are centred on them.
FOREGROUND_POINTS = 1_000


# Of a resampled volume: points of the body are stored as int16, and nnU-Net holds several copies in memory.
MOST_VOXELS_PER_AXIS, MOST_VOXELS = 2**15 - 1, 2**31


class Image(NamedTuple):
    """Volumes that are preprocessed together, as the channels of one nnU-Net image.

    Attributes:
        patient: whose they are.
        volumes: CT and MR of a registered pair, or a single volume.
    """

    patient: Patient
    volumes: tuple[Volume, ...]


def images_of(collection: Collection) -> list[Image]:
    """The images of a collection, in the order of its patients."""
    images: list[Image] = []
    for patient in collection.patients:
        groups = [patient.volumes] if patient.paired else [(volume,) for volume in patient.volumes]
        images += [Image(patient, volumes) for volumes in groups]
    return images


def resampling_problem(path: Path, grid: Grid, spacing: Sequence[float]) -> str | None:
    """Why a volume cannot be brought to a spacing, such as a voxel size in metres; None where it can.

    Args:
        path: path of the volume.
        grid: its grid, with the axes in the order of ORIENTATION.
        spacing: mm (z, y, x).
    """
    size, native = grid.size[::-1], grid.spacing[::-1]
    # Python's integers: the product of sizes that cannot be meant is too large for numpy's.
    resampled = [int(side) for side in compute_new_shape(size, native, spacing)]
    if min(resampled) >= 1 and max(resampled) <= MOST_VOXELS_PER_AXIS and math.prod(resampled) <= MOST_VOXELS:
        return None
    return (
        f"{path}: its {' x '.join(map(str, size))} voxels of {format_spacing(native)} (z y x) would become "
        f"{' x '.join(map(str, resampled))} voxels of {format_spacing(spacing)}; correct the voxel size in its header, "
        "choose another --spacing, or remove it"
    )


def preprocess_image(
    image: Image, folder: Path, normalisation: Normalisation, crop_size: tuple[int, int, int]
) -> dict[str, StoredGrid]:
    """Writes the files of an image unless they are complete already.

    Args:
        image: the volumes.
        folder: folder of the preprocessed collection.
        normalisation: normalisation of the collection.
        crop_size: crops that will be read (z, y, x); decides the chunks of the files.

    Returns:
        Grid of each file, by its path inside the folder.

    Raises:
        InputError: for a volume or mask that cannot be used.
        OSError: when a file cannot be written.
    """
    names = [file_name(image.patient, volume) for volume in image.volumes]
    origin = _origin(image.volumes, normalisation)
    grids = [grid_if_complete(folder / name, origin) for name in names]
    complete = {name: grid for name, grid in zip(names, grids, strict=True) if grid is not None}
    if len(complete) == len(names):
        return complete
    natives, data, segmentation, points = _run_nnunet(image.volumes, normalisation)
    written = {}
    for name, volume, native, channel in zip(names, image.volumes, natives, data, strict=True):
        # nnU-Net leaves voxels outside the mask at zero if it normalised inside the mask.
        masked = volume.domain == "MR" and normalisation.mr_use_mask and bool((segmentation < 0).any())
        padding = 0.0 if masked else float(channel.min())
        blocks, chunks = comp_blosc2_params((1, *channel.shape), crop_size, channel.itemsize)
        metadata = VolumeMetadata(points, padding, normalisation.spacing, native, origin)
        write_volume(folder / name, channel[None], metadata, chunks, blocks)
        written[name] = StoredGrid(channel.shape, native)
    return written


def _run_nnunet(
    volumes: tuple[Volume, ...], normalisation: Normalisation
) -> tuple[list[NativeGrid], np.ndarray, np.ndarray, np.ndarray]:
    """Runs nnU-Net's preprocessing.

    Returns:
        Native grids of the channels; preprocessed channels float32 (C, z, y, x); segmentation (1, z, y, x); voxels of
        the body int (n, 3).
    """
    natives: list[NativeGrid] = []
    channels: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    properties: dict[str, Any] = {}
    for volume in volumes:
        voxels, properties = read_volume(volume.path)
        native_spacing = tuple(float(distance) for distance in properties["spacing"])
        natives.append(NativeGrid(native_spacing, properties["sitk_stuff"]["original_orientation"]))
        channels.append(voxels)
        masks.append(body_mask(volume, voxels))
    # The body mask is passed as a segmentation: nnU-Net crops and resamples it, and samples its voxels.
    data, segmentation = run_case(
        np.concatenate(channels), np.maximum.reduce(masks).astype(np.int8), properties,
        [volume.domain for volume in volumes], normalisation, volumes[0].path,
    )  # fmt: skip
    points = np.asarray(properties["class_locations"][1], dtype=np.int64).reshape(-1, 4)[:, 1:]
    step = max(1, -(-len(points) // FOREGROUND_POINTS))
    return natives, data, segmentation, points[::step]


def run_case(
    data: np.ndarray, segmentation: np.ndarray, properties: dict[str, Any], domains: Sequence[str],
    normalisation: Normalisation, path: Path,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """nnU-Net's cropping to nonzero, normalisation and resampling.

    Args:
        data: channels (C, z, y, x).
        segmentation: int8 (S, z, y, x), resampled along; where it is 0 outside the nonzero voxels it becomes -1.
        properties: properties from the reader; `class_locations` of label 1 are added.
        domains: domains of the channels.
        normalisation: normalisation of the collection.
        path: path of the volume, for the error message.

    Raises:
        InputError: when the spacing leaves no voxel of what is not zero.

    Returns:
        Channels float32 (C, z, y, x) and segmentation (S, z, y, x).
    """
    plans = PlansManager(normalisation.plans(domains))
    try:
        preprocessed, segmentation, _ = DefaultPreprocessor(verbose=False).run_case_npy(
            data, segmentation, properties, plans, plans.get_configuration("swinfuse"),
            {"labels": {"background": 0, "body": 1}},
        )  # fmt: skip
    except ValueError as error:
        cropped = properties.get("shape_after_cropping_and_before_resampling", data.shape[1:])
        if compute_new_shape(cropped, properties["spacing"], normalisation.spacing).min() >= 1:
            raise
        raise InputError(
            f"{path}: all but {' x '.join(map(str, cropped))} voxels (z y x) are zero, and at "
            f"{format_spacing(normalisation.spacing)} none remains; remove it, or choose another --spacing"
        ) from error
    return preprocessed.astype(np.float32), segmentation


def _origin(volumes: tuple[Volume, ...], normalisation: Normalisation) -> str:
    """Digest of the raw files, the normalisation and the format: a file with another one is out of date."""
    sources = [INDEX_VERSION, [signature(volume) for volume in volumes], asdict(normalisation)]
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
