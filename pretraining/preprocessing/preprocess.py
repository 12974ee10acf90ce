"""From raw volumes to blosc2 files: nnU-Net's cropping, normalisation and resampling, in parallel, resumable."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swinfuse.imaging.grid import Grid
from pretraining.collections.collection import DOMAINS, Collection, Patient, Volume
from pretraining.collections.integrity import check
from pretraining.errors import InputError
from pretraining.preprocessed.collection import FOLDER, INDEX, INDEX_VERSION, TABLE, IndexTable, PreprocessedCollection
from pretraining.preprocessed.crops import FOREGROUND, PADDING
from pretraining.preprocessed.splits import split_patients
from pretraining.preprocessing.files import count_missing, file_name, file_names, own_first, remove_temporary
from pretraining.preprocessing.fingerprint import Normalisation, fingerprint_volume, samples_per_volume, signature
from pretraining.preprocessing.foreground import body_mask, read_volume
from pretraining.preprocessing.worker_pool import Workers

# Not the name of a data set: those do not begin with a dot.
MEMORY = ".fingerprints"
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
    grids: Mapping[Path, Grid] | None = None,
    processes: int = 2,
    validation_share: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
    part: int = 0,
    parts: int = 1,
) -> Path:
    """Preprocesses a collection, or completes what an interrupted run left.

    Every volume is first read whole, so that unusable ones are reported before the long work. What has been read and
    written is kept: a rerun, after a repair too, does only what is missing.

    Several parts may work at the same time, on one machine or many that share the folder, or one after the other: each
    reads its own volumes first and then those that no other has read yet, and writes its own images; the one that
    finishes last writes the index.

    Args:
        collection: the raw volumes.
        preprocessed_root: nnUNet_preprocessed.
        crop_size: crops that will be read (z, y, x); decides how the files are divided into chunks.
        spacing: voxel spacing in mm (z, y, x); the median of all volumes when None.
        grids: what :func:`check` has found of each file; it is asked when None.
        processes: worker processes; 1 works in this process.
        validation_share, seed: of the split by patient, which is made once and kept.
        overwrite: begin again.
        part, parts: do every `parts`-th image, beginning with number `part`.

    Returns:
        The folder of the preprocessed volumes; with `index.json` when all parts are done.

    Raises:
        InputError: for unusable volumes (all are named, after all others are read), a folder that was completed with
            another spacing or other volumes, too few patients to split, or a full or read-only disk.
    """
    folder = preprocessed_root / collection.name / FOLDER
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    spacing = spacing or median_spacing(collection, check(collection, processes) if grids is None else grids)
    names = file_names(collection)
    split = _recorded_split(folder, collection, spacing, validation_share)
    if split is not None and count_missing(folder, names) == 0:
        return folder
    split = split or split_patients(collection.patients, validation_share, seed)
    try:
        (folder / MEMORY).mkdir(parents=True, exist_ok=True)
        if parts == 1:
            remove_temporary(folder)
        with Workers(processes) as workers:
            read = partial(fingerprint_volume, memory=folder / MEMORY, samples=samples_per_volume(collection.volumes))
            order = own_first(range(len(collection.volumes)), part, parts)
            found = workers.run(read, [collection.volumes[number] for number in order], "reading volumes")
            fingerprints = [
                fingerprint for _, fingerprint in sorted(zip(order, found, strict=True), key=lambda x: x[0])
            ]
            normalisation = Normalisation.of(collection.volumes, fingerprints, spacing)
            write = partial(_preprocess_image, folder=folder, normalisation=normalisation, crop_size=crop_size)
            images = _images(collection)
            title = f"preprocessing to {' x '.join(f'{s:.3g}' for s in spacing)} mm"
            shapes = workers.run(write, images[part::parts], title)
            if count_missing(folder, names):
                return folder
            if parts > 1:
                # Others may have been made otherwise, in a run before: whatever does not fit is made again.
                others = [image for number, image in enumerate(images) if number % parts != part]
                shapes += workers.run(write, others, "checking the other parts")
        header = _header(collection, normalisation, crop_size, validation_share)
        by_name = {name: shape for some in shapes for name, shape in some.items()}
        IndexTable.of(collection, split, header["modalities"], names, by_name).write(folder / TABLE)
        _write_json(folder / INDEX, header)
        shutil.rmtree(folder / MEMORY, ignore_errors=True)
        remove_temporary(folder)
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


def median_spacing(collection: Collection, grids: Mapping[Path, Grid]) -> tuple[float, float, float]:
    """Median voxel spacing of all volumes, mm (z, y, x)."""
    spacings = np.array([grids[volume.path].spacing[::-1] for volume in collection.volumes])
    z, y, x = np.median(spacings, axis=0)
    return float(z), float(y), float(x)


def _images(collection: Collection) -> list[Image]:
    images: list[Image] = []
    for patient in collection.patients:
        images += [(patient, patient.volumes)] if patient.paired else [(patient, (v,)) for v in patient.volumes]
    return images


def _recorded_split(
    folder: Path, collection: Collection, spacing: tuple[float, float, float], validation_share: float
) -> dict[str, str] | None:
    """The split of a folder that has been completed; raises InputError when it was with other settings."""
    if not (folder / INDEX).is_file():
        return None
    found = PreprocessedCollection.open(folder)
    differing = found.differences(spacing, validation_share)
    if found.hash != collection.hash:
        differing.append(
            f"other volumes: {len(found.table.patients)} patients there, {len(collection.patients)} now; files were "
            "added, removed or replaced since, or --unpaired or --modality was given once"
        )
    if differing:
        raise InputError(
            f"{folder} was preprocessed with other settings ({'; '.join(differing)}). Use the same, or preprocess "
            "again with --overwrite"
        )
    return found.sides()


def _header(
    collection: Collection, normalisation: Normalisation, crop_size: tuple[int, int, int], validation_share: float
) -> dict[str, Any]:
    """Content of `index.json`: what a reader wants to know of the whole."""
    volumes = collection.volumes
    return {
        "version": INDEX_VERSION,
        "name": collection.name,
        "layout": collection.layout,
        "hash": collection.hash,
        "spacing": list(normalisation.spacing),
        "crop_size": list(crop_size),
        "validation_share": validation_share,
        "normalisation": {"ct": normalisation.ct, "mr_use_mask": normalisation.mr_use_mask},
        "patients": len(collection.patients),
        "pairs": sum(patient.paired for patient in collection.patients),
        "volumes": {domain: sum(volume.domain == domain for volume in volumes) for domain in DOMAINS},
        "modalities": sorted({volume.modality for volume in volumes}),
        "table": TABLE,
    }


def _preprocess_image(
    image: Image, folder: Path, normalisation: Normalisation, crop_size: tuple[int, int, int]
) -> dict[str, list[int]]:
    """Writes the files of one image and returns their shapes (z, y, x) by name; complete ones are left as they are."""
    patient, volumes = image
    names = [file_name(patient, volume) for volume in volumes]
    origin = _origin(volumes, normalisation)
    done = {name: shape for name in names if (shape := _shape_if_complete(folder / name, origin)) is not None}
    if len(done) == len(names):
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
    for name, volume, channel in zip(names, volumes, data.astype(np.float32), strict=True):
        # nnU-Net leaves voxels outside the mask at zero where it has normalised inside it.
        masked = volume.domain == "MR" and normalisation.mr_use_mask and bool((segmentation < 0).any())
        metadata = {
            FOREGROUND: points.astype("<i2").tobytes(),
            PADDING: 0.0 if masked else float(channel.min()),
            "spacing": list(normalisation.spacing),
            ORIGIN: origin,
        }
        write_volume(folder / name, channel[None], metadata, crop_size)
    return {name: [int(size) for size in data.shape[1:]] for name in names}


def write_volume(path: Path, data: np.ndarray, metadata: dict[str, Any], crop_size: tuple[int, int, int]) -> None:
    """Writes voxels float32 (1, z, y, x) in chunks for crops of this size; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks, chunks = comp_blosc2_params(data.shape, crop_size, data.itemsize)
    temporary = path.with_suffix(f".{os.getpid()}.tmp.b2nd")
    try:
        blosc2.asarray(
            np.ascontiguousarray(data), urlpath=str(temporary), mode="w", chunks=chunks, blocks=blocks,
            cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1},
            # Not vlmeta: blosc2 4.14 never frees what it has read of that.
            meta=metadata,
        )  # fmt: skip
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
        same = array.schunk.meta[ORIGIN] == origin
    except (RuntimeError, OSError, ValueError, KeyError):
        # Damaged, or of another origin: either way it is made again.
        return None
    return [int(size) for size in array.shape[1:]] if same else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp.json")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)
