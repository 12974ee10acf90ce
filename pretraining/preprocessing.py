"""From raw volumes to blosc2 files: nnU-Net's cropping, normalisation and resampling, in parallel, resumable."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.collections.integrity import read_grid
from pretraining.crops import FOREGROUND, INDEX, INDEX_VERSION, PADDING, PreprocessedCollection
from pretraining.errors import InputError
from pretraining.fingerprint import Normalisation, fingerprint_volume, signature
from pretraining.foreground import body_mask, read_volume
from pretraining.parallel import Workers
from pretraining.splits import split_patients

FOLDER = "swinfuse"
MEMORY = "fingerprints"
FOREGROUND_POINTS = 1_000
# Key of a file's metadata: digest of the raw files and the normalisation that it was made from.
ORIGIN = "origin"

# A registered pair becomes two channels of one image; any other volume an image of its own.
Image = tuple[Patient, tuple[Volume, ...]]


def preprocess(
    collection: Collection,
    preprocessed_root: Path,
    *,
    crop_size: tuple[int, int, int],
    spacing: tuple[float, float, float] | None = None,
    processes: int = 2,
    validation_share: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Preprocesses a collection, or completes what an interrupted run left.

    Every volume is first read whole, so that unusable ones are reported before the long work. What has been read and
    written is kept: a rerun, after a repair too, does only what is missing.

    Args:
        collection: the raw volumes.
        preprocessed_root: nnUNet_preprocessed.
        crop_size: crops that will be read (z, y, x); decides how the files are divided into chunks.
        spacing: voxel spacing in mm (z, y, x); the median of all volumes when None.
        processes: worker processes; 1 works in this process.
        validation_share, seed: of the split by patient, which is made once and kept.
        overwrite: begin again.

    Returns:
        The folder of the preprocessed volumes, with `index.json`.

    Raises:
        InputError: for unusable volumes (all are named, after all others are read), a folder that was completed with
            another spacing or other volumes, too few patients to split, or a full or read-only disk.
    """
    folder = preprocessed_root / collection.name / FOLDER
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    spacing = spacing or median_spacing(collection)
    split = _recorded_split(folder, collection, spacing)
    if split is not None and all((folder / name).is_file() for name in _file_names(collection)):
        return folder
    split = split or split_patients(collection.patients, validation_share, seed)
    try:
        (folder / MEMORY).mkdir(parents=True, exist_ok=True)
        for left in folder.rglob("*.tmp.*"):
            left.unlink()
        with Workers(processes) as workers:
            fingerprints = workers.run(
                partial(fingerprint_volume, memory=folder / MEMORY), collection.volumes, "reading volumes"
            )
            normalisation = Normalisation.of(collection.volumes, fingerprints, spacing)
            shapes = workers.run(
                partial(_preprocess_image, folder=folder, normalisation=normalisation, crop_size=crop_size),
                _images(collection),
                f"preprocessing to {' x '.join(f'{s:.3g}' for s in spacing)} mm",
            )
        index = _index(collection, normalisation, split, crop_size, {k: v for some in shapes for k, v in some.items()})
        _write_json(folder / INDEX, index)
        shutil.rmtree(folder / MEMORY)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(preprocessed_root).free / 2**30
            raise InputError(
                f"{folder}: the disk is full ({free:.2f} GiB free). What is complete is kept: free some space and run "
                "the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(f"{folder}: cannot be written to ({error}); choose another nnUNet_preprocessed") from error
        raise
    return folder


def median_spacing(collection: Collection) -> tuple[float, float, float]:
    """Median voxel spacing of all volumes, mm (z, y, x)."""
    spacings = np.array([read_grid(volume.path).spacing[::-1] for volume in collection.volumes])
    z, y, x = np.median(spacings, axis=0)
    return float(z), float(y), float(x)


def file_name(patient: Patient, volume: Volume) -> str:
    """Name of a preprocessed volume."""
    return f"{patient.identifier}_{volume.modality}.b2nd"


def _file_names(collection: Collection) -> list[str]:
    return [file_name(patient, volume) for patient in collection.patients for volume in patient.volumes]


def _images(collection: Collection) -> list[Image]:
    images: list[Image] = []
    for patient in collection.patients:
        images += [(patient, patient.volumes)] if patient.paired else [(patient, (v,)) for v in patient.volumes]
    return images


def _recorded_split(folder: Path, collection: Collection, spacing: tuple[float, float, float]) -> dict[str, str] | None:
    """The split of a folder that has been completed; raises InputError when it was with other settings."""
    if not (folder / INDEX).is_file():
        return None
    found = PreprocessedCollection.open(folder)
    differing = []
    if not np.allclose(found.spacing, spacing, atol=1e-5):
        differing.append(f"spacing {_millimetres(found.spacing)} there, {_millimetres(spacing)} now")
    if found.hash != collection.hash:
        differing.append(
            f"other volumes: {len(found.patients)} patients there, {len(collection.patients)} now; files were added, "
            "removed or replaced since, or --unpaired was given once"
        )
    if differing:
        raise InputError(
            f"{folder} was preprocessed with other settings ({'; '.join(differing)}). Use the same, or preprocess "
            "again with --overwrite"
        )
    return {patient["identifier"]: patient["split"] for patient in found.patients}


def _index(
    collection: Collection,
    normalisation: Normalisation,
    split: dict[str, str],
    crop_size: tuple[int, int, int],
    shapes: dict[str, list[int]],
) -> dict[str, Any]:
    patients = []
    for patient in collection.patients:
        names = [file_name(patient, volume) for volume in patient.volumes]
        patients.append(
            {
                "identifier": patient.identifier,
                "paired": patient.paired,
                "split": split[patient.identifier],
                "volumes": [
                    {"domain": volume.domain, "modality": volume.modality, "file": name, "shape": shapes[name]}
                    for volume, name in zip(patient.volumes, names, strict=True)
                ],
            }
        )
    return {
        "version": INDEX_VERSION,
        "name": collection.name,
        "hash": collection.hash,
        "spacing": list(normalisation.spacing),
        "crop_size": list(crop_size),
        "normalisation": {"ct": normalisation.ct, "mr_use_mask": normalisation.mr_use_mask},
        "patients": patients,
    }


def _preprocess_image(
    image: Image, folder: Path, normalisation: Normalisation, crop_size: tuple[int, int, int]
) -> dict[str, list[int]]:
    """Writes the files of one image and returns their shapes (z, y, x) by name; complete ones are left as they are."""
    patient, volumes = image
    paths = [folder / file_name(patient, volume) for volume in volumes]
    origin = _origin(volumes, normalisation)
    done = {path.name: shape for path in paths if (shape := _shape_if_complete(path, origin)) is not None}
    if len(done) == len(paths):
        return done
    channels: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    properties: dict[str, Any] = {}
    for volume in volumes:
        voxels, properties = read_volume(volume.path)
        channels.append(voxels)
        masks.append(body_mask(volume, voxels))
    plans = PlansManager(normalisation.plans([volume.domain for volume in volumes]))
    # The body travels as a segmentation: nnU-Net crops and resamples it, and samples its locations for us.
    data, segmentation, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        np.concatenate(channels), np.maximum.reduce(masks).astype(np.int8), properties, plans,
        plans.get_configuration("swinfuse"), {"labels": {"background": 0, "body": 1}},
    )  # fmt: skip
    points = np.asarray(properties["class_locations"][1], dtype=np.int64).reshape(-1, 4)[:, 1:]
    points = points[:: max(1, -(-len(points) // FOREGROUND_POINTS))]
    for path, volume, channel in zip(paths, volumes, data.astype(np.float32), strict=True):
        # nnU-Net leaves voxels outside the mask at zero where it has normalised inside it.
        masked = volume.domain == "MR" and normalisation.mr_use_mask and bool((segmentation < 0).any())
        metadata = {
            FOREGROUND: points.astype("<i2").tobytes(),
            PADDING: 0.0 if masked else float(channel.min()),
            "spacing": list(normalisation.spacing),
            ORIGIN: origin,
        }
        _write_volume(path, channel[None], metadata, crop_size)
    return {path.name: [int(size) for size in data.shape[1:]] for path in paths}


def _write_volume(path: Path, data: np.ndarray, metadata: dict[str, Any], crop_size: tuple[int, int, int]) -> None:
    blocks, chunks = comp_blosc2_params(data.shape, crop_size, data.itemsize)
    temporary = path.with_suffix(f".{os.getpid()}.tmp.b2nd")
    try:
        array = blosc2.asarray(
            np.ascontiguousarray(data), urlpath=str(temporary), mode="w", chunks=chunks, blocks=blocks,
            cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1},
        )  # fmt: skip
        for name, value in metadata.items():
            array.schunk.vlmeta[name] = value
        os.replace(temporary, path)
    except RuntimeError as error:
        # blosc2 says only that it failed; with less room than the volume needs, a full disk is why.
        if shutil.disk_usage(path.parent).free < data.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _origin(volumes: tuple[Volume, ...], normalisation: Normalisation) -> str:
    made_from = [[signature(volume) for volume in volumes], asdict(normalisation)]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _shape_if_complete(path: Path, origin: str) -> list[int] | None:
    """Shape (z, y, x) of a whole file that was made from the same raw volumes in the same way."""
    if not path.is_file():
        return None
    try:
        array = blosc2.open(str(path), mode="r")
        same = array.schunk.vlmeta[ORIGIN] == origin
    except (RuntimeError, OSError, ValueError, KeyError):
        # Damaged, or of another origin: either way it is made again.
        return None
    return [int(size) for size in array.shape[1:]] if same else None


def _millimetres(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp.json")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)
