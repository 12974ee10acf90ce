"""From raw volumes to blosc2 files: nnU-Net's cropping, normalisation and resampling, in parallel, resumable."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import blosc2
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.collections.integrity import read_grid
from pretraining.crops import FOREGROUND, INDEX, INDEX_VERSION
from pretraining.errors import InputError
from pretraining.foreground import body_mask, fingerprint_volume, intensity_properties, read_volume
from pretraining.splits import split_patients

FOLDER = "swinfuse"
SETTINGS = "settings.json"
FOREGROUND_POINTS = 1_000
# nnU-Net's rule: where cropping to nonzero leaves less than this, intensities are normalised inside the mask.
NONZERO_SHARE_FOR_MASK = 0.75

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Normalisation:
    """What every volume is brought to.

    Attributes:
        spacing: mm (z, y, x).
        ct: nnU-Net's intensity properties of the collection's CT foreground.
        mr_use_mask: whether MR is normalised inside its nonzero mask.
    """

    spacing: tuple[float, float, float]
    ct: dict[str, float]
    mr_use_mask: bool

    def plans(self, domains: list[str]) -> dict[str, Any]:
        """nnU-Net plans for volumes with these channels."""
        resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
        return {
            "dataset_name": "swinfuse",
            "plans_name": "swinfuse",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {str(i): self.ct for i in range(len(domains))},
            "configurations": {
                "swinfuse": {
                    "spacing": list(self.spacing),
                    "normalization_schemes": [
                        "CTNormalization" if domain == "CT" else "ZScoreNormalization" for domain in domains
                    ],
                    "use_mask_for_norm": [domain == "MR" and self.mr_use_mask for domain in domains],
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": resampling,
                    "resampling_fn_seg": "resample_data_or_seg_to_shape",
                    "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                    # Not used by preprocessing; its absence would mean plans of an old format.
                    "architecture": {},
                }
            },
        }


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

    Args:
        collection: the raw volumes.
        preprocessed_root: nnUNet_preprocessed.
        crop_size: crops that will be read (z, y, x); decides how the files are divided into chunks.
        spacing: voxel spacing in mm (z, y, x); the median of all volumes when None.
        processes: worker processes.
        validation_share, seed: of the split by patient, which is made once and kept.
        overwrite: begin again.

    Returns:
        The folder of the preprocessed volumes, with `index.json`.

    Raises:
        InputError: for unreadable volumes (all are named, the others are kept), a folder that was made with other
            settings, too few patients to split, or a full disk.
    """
    folder = preprocessed_root / collection.name / FOLDER
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    split = split_patients(collection.patients, validation_share, seed)
    spacing = spacing or median_spacing(collection)
    settings = {
        "version": INDEX_VERSION, "collection": collection.hash, "spacing": [round(float(s), 6) for s in spacing],
    }  # fmt: skip
    if _complete(folder, settings):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / SETTINGS, settings)
        normalisation = _normalisation(collection, spacing, folder, processes)
        results = _run(
            partial(_preprocess_volumes, folder=folder, normalisation=normalisation, crop_size=crop_size),
            [group for patient in collection.patients for group in _groups(patient)],
            processes,
            f"preprocessing to {' x '.join(f'{s:.3g}' for s in spacing)} mm",
        )
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(preprocessed_root).free / 2**30
        raise InputError(
            f"{folder}: the disk is full ({free:.2f} GiB free). What is complete is kept: free some space and run the same "
            "command again"
        ) from error
    shapes = dict(entry for entries in results for entry in entries)
    _write_json(
        folder / INDEX,
        {
            "version": INDEX_VERSION,
            "name": collection.name,
            "hash": collection.hash,
            "spacing": list(spacing),
            "normalisation": {"ct": normalisation.ct, "mr_use_mask": normalisation.mr_use_mask},
            "patients": [
                {
                    "identifier": patient.identifier,
                    "paired": patient.paired,
                    "split": split[patient.identifier],
                    "volumes": [
                        {
                            "domain": volume.domain,
                            "modality": volume.modality,
                            "file": file_name(patient, volume),
                            "shape": shapes[file_name(patient, volume)],
                        }
                        for volume in patient.volumes
                    ],
                }
                for patient in collection.patients
            ],
        },
    )
    return folder


def median_spacing(collection: Collection) -> tuple[float, float, float]:
    """Median voxel spacing of all volumes, mm (z, y, x)."""
    spacings = np.array([read_grid(volume.path).spacing[::-1] for volume in collection.volumes])
    z, y, x = np.median(spacings, axis=0)
    return float(z), float(y), float(x)


def file_name(patient: Patient, volume: Volume) -> str:
    return f"{patient.identifier}_{volume.modality}.b2nd"


def _complete(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether everything is there; raises InputError when what is there was made with other settings."""
    path = folder / SETTINGS
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    differing = [f"{name}: {found.get(name)} there, {settings[name]} now" for name in settings
                 if found.get(name) != settings[name]]  # fmt: skip
    if differing:
        raise InputError(
            f"{folder} was preprocessed with other settings or other volumes ({'; '.join(differing)}). "
            "Use the same, or preprocess again with --overwrite"
        )
    return (folder / INDEX).is_file()


def _groups(patient: Patient) -> list[tuple[Patient, tuple[Volume, ...]]]:
    """Volumes to be preprocessed as channels of one image: a registered pair together, all others alone."""
    if patient.paired:
        return [(patient, patient.volumes)]
    return [(patient, (volume,)) for volume in patient.volumes]


def _normalisation(
    collection: Collection, spacing: tuple[float, float, float], folder: Path, processes: int
) -> Normalisation:
    """The collection's fingerprint; kept in the folder, since reading every volume takes its time."""
    path = folder / "fingerprint.json"
    if path.is_file():
        found = json.loads(path.read_text())
        return Normalisation(spacing, found["ct"], found["mr_use_mask"])
    volumes = collection.volumes
    fingerprints = _run(fingerprint_volume, volumes, processes, "reading volumes")
    ct = intensity_properties([f.intensities for v, f in zip(volumes, fingerprints, strict=True) if v.domain == "CT"])
    shares = [f.nonzero_share for v, f in zip(volumes, fingerprints, strict=True) if v.domain == "MR"]
    use_mask = float(np.median(shares)) < NONZERO_SHARE_FOR_MASK
    _write_json(path, {"ct": ct, "mr_use_mask": use_mask})
    return Normalisation(spacing, ct, use_mask)


def _preprocess_volumes(
    task: tuple[Patient, tuple[Volume, ...]],
    folder: Path,
    normalisation: Normalisation,
    crop_size: tuple[int, int, int],
) -> list[tuple[str, list[int]]]:
    """Writes the files of one image and returns their names and shapes; complete ones are left as they are."""
    patient, volumes = task
    paths = [folder / file_name(patient, volume) for volume in volumes]
    done = [_shape_if_complete(path) for path in paths]
    if all(shape is not None for shape in done):
        return [(path.name, shape) for path, shape in zip(paths, done, strict=True) if shape is not None]
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    properties: dict[str, Any] = {}
    for volume in volumes:
        data, properties = read_volume(volume.path)
        images.append(data)
        masks.append(body_mask(volume, data))
    plans = PlansManager(normalisation.plans([volume.domain for volume in volumes]))
    # The body travels as a segmentation: nnU-Net crops and resamples it, and samples its locations for us.
    data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        np.concatenate(images), np.maximum.reduce(masks).astype(np.int8), properties, plans,
        plans.get_configuration("swinfuse"), {"labels": {"background": 0, "body": 1}},
    )  # fmt: skip
    points = np.asarray(properties["class_locations"][1])[:, 1:]
    if len(points) > FOREGROUND_POINTS:
        points = points[:: -(-len(points) // FOREGROUND_POINTS)]
    for path, channel in zip(paths, data, strict=True):
        _write_volume(path, channel[None].astype(np.float32), points, crop_size)
    return [(path.name, [int(s) for s in data.shape[1:]]) for path in paths]


def _write_volume(path: Path, data: np.ndarray, points: np.ndarray, crop_size: tuple[int, int, int]) -> None:
    blocks, chunks = comp_blosc2_params(data.shape, crop_size, data.itemsize)
    temporary = path.with_suffix(f".{os.getpid()}.tmp.b2nd")
    try:
        array = blosc2.asarray(
            np.ascontiguousarray(data), urlpath=str(temporary), mode="w", chunks=chunks, blocks=blocks,
            cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1},
        )  # fmt: skip
        array.schunk.vlmeta[FOREGROUND] = points.astype("<i2").tobytes()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _shape_if_complete(path: Path) -> list[int] | None:
    """Files get their name when they are whole, so one that opens is complete."""
    if not path.is_file():
        return None
    try:
        return [int(s) for s in blosc2.open(str(path), mode="r").shape[1:]]
    except (RuntimeError, OSError, ValueError):
        return None


def _run(function: Callable[[Task], Result], tasks: Iterable[Task], processes: int, title: str) -> list[Result]:
    """Runs tasks in spawned workers with a progress bar; what fails is reported together, after all others are done."""
    tasks = list(tasks)
    results: dict[int, Result] = {}
    problems: list[str] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_limit_threads) as pool:
        futures = {pool.submit(function, task): index for index, task in enumerate(tasks)}
        try:
            for future in tqdm(as_completed(futures), title, len(tasks)):
                try:
                    results[futures[future]] = future.result()
                except InputError as error:
                    problems.append(str(error))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if problems:
        listing = "\n  ".join(sorted(problems))
        raise InputError(
            f"{len(problems)} volume(s) cannot be used; everything else is done and kept, repair or remove these and run "
            f"the same command again:\n  {listing}"
        )
    return [results[index] for index in range(len(tasks))]


def _limit_threads() -> None:
    blosc2.set_nthreads(1)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)
