"""From raw volumes to blosc2 files: nnU-Net's cropping, normalisation and resampling, in parallel and resumable."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import Grid
from pretraining.collections.collection import DOMAINS, ORIENTATION, Collection
from pretraining.collections.integrity import check
from pretraining.preprocessed.collection import FOLDER, INDEX, INDEX_VERSION, TABLE, IndexTable, PreprocessedCollection
from pretraining.preprocessed.reader_locks import without_readers
from pretraining.preprocessed.splits import split_patients
from pretraining.preprocessed.volume_file import StoredGrid
from pretraining.preprocessing.files import count_missing, file_names, only_process, own_first, remove_temporary
from pretraining.preprocessing.fingerprint import (
    Normalisation,
    VolumeFingerprint,
    fingerprint_volume,
    samples_per_volume,
    unit_warning,
)
from pretraining.preprocessing.image import images_of, preprocess_image, resampling_problem
from pretraining.preprocessing.worker_pool import Workers

# No data set can have this name: their names do not begin with a dot.
FINGERPRINT_CACHE = ".fingerprints"
# By the file name of a volume.
Grids = dict[str, StoredGrid]


def preprocess(
    collection: Collection,
    preprocessed_root: Path,
    *,
    crop_size: tuple[int, int, int],
    spacing: tuple[float, float, float] | None = None,
    ct_intensities: Mapping[str, float] | None = None,
    grids: Mapping[Path, Grid] | None = None,
    processes: int = 2,
    validation_share: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
    before_deleting: Callable[[], None] | None = None,
    part: int = 0,
    parts: int = 1,
) -> Path:
    """Preprocesses a collection, or completes what an interrupted run has started.

    Every volume is first read completely, so that unusable ones are reported before the long work. Finished work is
    kept: another run, also after a repair, does only what is missing.

    Several parts may run at the same time, on one machine or on many that share the folder, or one after the other:
    each first reads its own volumes, then those that no other part has read yet, and writes its own images; the part
    that finishes last writes the index. Without parts, a second process waits for the first, whose temporary files it
    would remove.

    Args:
        collection: the raw volumes.
        preprocessed_root: nnUNet_preprocessed.
        crop_size: crops that will be read (z, y, x); decides the chunks of the files.
        spacing: voxel spacing in mm (z, y, x); the median of all volumes when None.
        ct_intensities: intensity properties that CT is normalised with; those of the body in all CT when None.
        grids: result of :func:`check`, which is called when this is None.
        processes: worker processes; with 1, this process does the work.
        validation_share, seed: validation share and seed of the split by patient, which is drawn once and kept.
        overwrite: delete the folder first.
        before_deleting: with `overwrite`, called after all checks of the headers, when nothing is deleted yet.
        part, parts: process every `parts`-th image, starting with number `part`.

    Returns:
        The folder of the preprocessed volumes; with `index.json` once all parts are done.

    Raises:
        InputError: for volumes that the spacing makes empty or huge, before any work; for other unusable volumes (all
            are named, after all others are read), a folder that was completed with
            another spacing, other intensities or other volumes, too few patients to split, a full or read-only disk, or
            with `overwrite` a run that reads the folder.
    """
    folder = preprocessed_root / collection.name / FOLDER
    grids = check(collection, processes) if grids is None else grids
    spacing = spacing or median_spacing(collection, grids)
    names = file_names(collection)

    def recorded_split() -> tuple[dict[str, str] | None, bool]:
        split = _recorded_split(folder, collection, spacing, validation_share, ct_intensities)
        return split, split is not None and count_missing(folder, names) == 0

    if not overwrite and recorded_split()[1]:
        return folder
    problems = [resampling_problem(volume.path, grids[volume.path], spacing) for volume in collection.volumes]
    if found := [problem for problem in problems if problem]:
        listing = "\n  ".join(found)
        raise InputError(f"collection {collection.name}: {len(found)} problem(s), nothing was changed:\n  {listing}")
    with explain_disk_errors(folder), nullcontext() if parts > 1 else only_process(folder):
        if overwrite:
            _delete(folder, before_deleting)
        # Another process may have completed it meanwhile.
        split, complete = recorded_split()
        if complete:
            return folder
        split = split or split_patients(collection.patients, validation_share, seed)
        cache = folder / FINGERPRINT_CACHE
        cache.mkdir(parents=True, exist_ok=True)
        if parts == 1:
            remove_temporary(folder)
        with Workers(processes) as workers:
            fingerprints = _measure_fingerprints(collection, cache, workers, part, parts)
            if warning := unit_warning(collection.volumes, fingerprints, ct_intensities):
                print(warning, file=sys.stderr, flush=True)
            normalisation = Normalisation.of(collection.volumes, fingerprints, spacing, ct_intensities)
            stored = _write_images(collection, folder, names, normalisation, crop_size, workers, part, parts)
        if stored is None:
            return folder
        header = _header(collection, normalisation, ct_intensities, crop_size, validation_share, names, stored)
        IndexTable.of(collection, split, header["modalities"], names, stored).write(folder / TABLE)
        with atomic_write(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(header, indent=1))
        shutil.rmtree(cache, ignore_errors=True)
        remove_temporary(folder)
    return folder


def _delete(folder: Path, before_deleting: Callable[[], None] | None) -> None:
    """Deletes a preprocessed folder, if there is one; raises InputError when a run reads it."""
    with without_readers(folder):
        if before_deleting is not None:
            before_deleting()
        if folder.exists():
            shutil.rmtree(folder)


def median_spacing(collection: Collection, grids: Mapping[Path, Grid]) -> tuple[float, float, float]:
    """Median voxel spacing of all volumes, mm (z, y, x)."""
    spacings = np.array([grids[volume.path].spacing[::-1] for volume in collection.volumes])
    z, y, x = np.median(spacings, axis=0)
    return float(z), float(y), float(x)


@contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turns the OSErrors of a full or read-only disk into an InputError that names the folder and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
            free = shutil.disk_usage(existing).free / 2**30
            raise InputError(
                f"{folder}: the disk is full ({free:.2f} GiB free). Complete volumes are kept: free some space and run "
                "the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(f"{folder}: cannot be written to ({error}); choose another nnUNet_preprocessed") from error
        raise


def _measure_fingerprints(
    collection: Collection, cache: Path, workers: Workers, part: int, parts: int
) -> list[VolumeFingerprint]:
    """Reads all volumes, this part's first; what other parts have read comes from the cache."""
    fingerprint_one = partial(fingerprint_volume, cache=cache, samples=samples_per_volume(collection.volumes))
    order = own_first(range(len(collection.volumes)), part, parts)
    results = workers.run(fingerprint_one, [collection.volumes[number] for number in order], "reading volumes")
    by_number = dict(zip(order, results, strict=True))
    return [by_number[number] for number in sorted(by_number)]


def _write_images(
    collection: Collection,
    folder: Path,
    names: Sequence[str],
    normalisation: Normalisation,
    crop_size: tuple[int, int, int],
    workers: Workers,
    part: int,
    parts: int,
) -> Grids | None:
    """Writes the images of a part; the grids of all volumes, or None while other parts are not finished."""
    preprocess_one = partial(preprocess_image, folder=folder, normalisation=normalisation, crop_size=crop_size)
    images = images_of(collection)
    title = f"preprocessing to {' x '.join(f'{s:.3g}' for s in normalisation.spacing)} mm"
    stored = workers.run(preprocess_one, images[part::parts], title)
    if count_missing(folder, names):
        return None
    if parts > 1:
        # Files of other parts may come from an earlier run with other settings; those are written again.
        others = [image for number, image in enumerate(images) if number % parts != part]
        stored += workers.run(preprocess_one, others, "checking the other parts")
    return {name: grid for image_grids in stored for name, grid in image_grids.items()}


def _recorded_split(
    folder: Path,
    collection: Collection,
    spacing: tuple[float, float, float],
    validation_share: float,
    ct_intensities: Mapping[str, float] | None,
) -> dict[str, str] | None:
    """The split of a completed folder, None of an incomplete one; raises InputError if its settings differ."""
    if not (folder / INDEX).is_file():
        return None
    recorded = PreprocessedCollection.open(folder)
    differences = recorded.differences(spacing, validation_share, ct_intensities)
    if recorded.hash != collection.hash:
        differences.append(
            f"other volumes: {len(recorded.table.patients)} patients in the folder, {len(collection.patients)} now; "
            "images or masks were added, removed or replaced since, or an earlier version wrote the folder, which "
            "ignored masks, or --unpaired, --modality or --leave_out differ"
        )
    if differences:
        raise InputError(
            f"{folder} was preprocessed with other settings ({'; '.join(differences)}). Use the same, or preprocess "
            "again with --overwrite"
        )
    return recorded.split_by_patient()


def _header(
    collection: Collection,
    normalisation: Normalisation,
    ct_intensities: Mapping[str, float] | None,
    crop_size: tuple[int, int, int],
    validation_share: float,
    names: Sequence[str],
    grids: Grids,
) -> dict[str, Any]:
    """Content of `index.json`: what concerns the collection as a whole."""
    volumes = collection.volumes
    native = {
        domain: Counter(
            grids[name].native.orientation
            for name, volume in zip(names, volumes, strict=True)
            if volume.domain == domain
        )
        for domain in DOMAINS
    }
    return {
        "version": INDEX_VERSION,
        "name": collection.name,
        "layout": collection.layout,
        "hash": collection.hash,
        "spacing": list(normalisation.spacing),
        "orientation": ORIENTATION,
        "native_orientations": {domain: dict(sorted(counts.items())) for domain, counts in native.items()},
        "crop_size": list(crop_size),
        "validation_share": validation_share,
        # As asked for; None where they were measured on the collection.
        "ct_intensities": None if ct_intensities is None else dict(ct_intensities),
        "normalisation": {"ct": normalisation.ct, "mr_use_mask": normalisation.mr_use_mask},
        "patients": len(collection.patients),
        "pairs": sum(patient.paired for patient in collection.patients),
        "volumes": {domain: sum(volume.domain == domain for volume in volumes) for domain in DOMAINS},
        "modalities": sorted({volume.modality for volume in volumes}),
        "table": TABLE,
    }
