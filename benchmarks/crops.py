"""Crops per second of one worker, against nnU-Net's own data loader on the same files; the loader's memory over steps.

    python benchmarks/crops.py [--steps 10000]

Volumes are synthetic (a noisy ball, for CT and MR alike) and written by our preprocessing's writer. nnU-Net's loader
reads links to the same image files, with segmentations and properties from its own writer; without augmentation, in one
process. First, crops of the same place must be equal, voxel by voxel. nnU-Net's loader reads a segmentation with each
image, which pretraining does not need: the row "images only" leaves it out. Readers are timed in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch.utils.data import DataLoader

from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.preprocessed.collection import INDEX, INDEX_VERSION, TABLE, IndexTable, PreprocessedCollection
from pretraining.preprocessed.crops import CropDataset
from pretraining.preprocessed.volume_file import (
    NativeGrid,
    StoredGrid,
    VolumeMetadata,
    open_volume,
    read_crop,
    write_volume,
)

FOREGROUND_SHARE = 0.67


def write_data(folder: Path, nnunet: Path, count: int, shape: tuple[int, ...], crop: tuple[int, int, int]) -> None:
    """Writes `count` CT and as many MR volumes, their index, and the files that nnU-Net's loader needs."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    body = sum(axis**2 for axis in axes) < 0.7
    points = np.argwhere(body)
    patients = []
    for number in range(2 * count):
        random = np.random.default_rng(number)
        data = np.where(body, random.normal(0.5, 1, shape), -1).astype(np.float32)[None]
        identifier, domain = f"p{number:03d}", "MR" if number % 2 else "CT"
        file = folder / f"{identifier}_{domain}.b2nd"
        few = points[random.choice(len(points), 1000, replace=False)]
        blocks, chunks = comp_blosc2_params(data.shape, crop, data.itemsize)
        write_volume(file, data, VolumeMetadata(few, padding=-1.0), chunks, blocks)
        patients.append(Patient(identifier, (Volume(domain, domain, file),), paired=False))
        # nnU-Net keeps the locations of up to 10,000 voxels of each class, channel axis first.
        locations = points[random.choice(len(points), min(10_000, len(points)), replace=False)]
        properties = {"class_locations": {1: np.pad(locations, ((0, 0), (1, 0)))}}
        target = nnunet / file.stem
        segmentation = body[None].astype(np.int8)
        nnUNetDatasetBlosc2.save_case(data, segmentation, properties, str(target), chunks, blocks)
        target.with_suffix(".b2nd").unlink()
        target.with_suffix(".b2nd").symlink_to(file)
    collection = Collection("synthetic", "synthetic", folder, tuple(patients))
    files = [volume.path.name for volume in collection.volumes]
    split = {patient.identifier: "train" for patient in patients}
    grid = StoredGrid(shape, NativeGrid((1.0, 1.0, 1.0), "RAS"))
    IndexTable.of(collection, split, ["CT", "MR"], files, dict.fromkeys(files, grid)).write(folder / TABLE)
    header = {
        "version": INDEX_VERSION, "name": "synthetic", "hash": "synthetic", "spacing": [1.0] * 3, "orientation": "RAS",
        "crop_size": list(crop), "validation_share": 0.1, "modalities": ["CT", "MR"],
    }  # fmt: skip
    (folder / INDEX).write_text(json.dumps(header))


def check_equality(folder: Path, nnunet: nnUNetDatasetBlosc2, crop: tuple[int, int, int]) -> int:
    """Reads the same places with both readers, inside and across the border; returns the number compared.

    Raises:
        AssertionError: when a crop differs.
    """
    random = np.random.default_rng(0)
    for identifier in nnunet.identifiers:
        theirs, _, _, _ = nnunet.load_case(identifier)
        file = folder / f"{identifier}.b2nd"
        ours = open_volume(file)
        for _ in range(5):
            start = np.array(
                [random.integers(-8, size - side + 8) for size, side in zip(ours.shape[1:], crop, strict=True)]
            )
            bounds = [[int(a), int(a + side)] for a, side in zip(start, crop, strict=True)]
            np.testing.assert_array_equal(read_crop(file, ours, start, crop), crop_and_pad_nd(theirs, bounds, -1))
    return 5 * len(nnunet.identifiers)


def anonymous_memory(pid: int | str) -> float:
    """MiB of a process that are not backed by a file: mapped volumes come and go with the page cache."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def rate(work: Callable[[], int], seconds: float) -> float:
    """Crops per second."""
    crops, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        crops += work()
    return crops / elapsed


def watch_memory(dataset: CropDataset) -> None:
    """A table of the memory of this process and of one loading worker."""
    loader = iter(DataLoader(dataset, batch_size=None, num_workers=1))
    worker = loader._workers[0].pid
    print(f"\n| step of {len(dataset)} | this process, MiB | worker, MiB |\n| --- | --- | --- |")
    for step in range(len(dataset)):
        if step % (len(dataset) // 10) == len(dataset) // 100 or step == len(dataset) - 1:
            print(f"| {step} | {anonymous_memory('self'):.0f} | {anonymous_memory(worker):.0f} |", flush=True)
        next(loader)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--volumes", type=int, default=8, help="volumes of each modality")
parser.add_argument("--shape", type=int, nargs=3, default=(160, 224, 224))
parser.add_argument("--crop_size", type=int, nargs=3, default=(96, 96, 96))
parser.add_argument("--seconds", type=float, default=10, help="of each of five rounds")
parser.add_argument("--steps", type=int, default=0, help="steps over which memory is watched; 0: do not watch")
options = parser.parse_args()
torch.set_num_threads(1)
crop_size = (options.crop_size[0], options.crop_size[1], options.crop_size[2])
with tempfile.TemporaryDirectory() as name:
    ours_folder, theirs_folder = Path(name) / "ours", Path(name) / "nnunet"
    theirs_folder.mkdir()
    write_data(ours_folder, theirs_folder, options.volumes, tuple(options.shape), crop_size)
    cases = nnUNetDatasetBlosc2(str(theirs_folder))
    print(f"{check_equality(ours_folder, cases, crop_size)} crops are equal, voxel by voxel, with both readers.\n")
    # Ours returns a pair of crops, nnU-Net's loader a batch of two: each call gives two.
    crops = CropDataset(
        PreprocessedCollection.open(ours_folder), "train", crop_size, 1,
        seed=0, foreground_share=FOREGROUND_SHARE, steps=1 << 40,
    )  # fmt: skip
    labels = LabelManager({"background": 0, "body": 1}, None)
    batches = nnUNetDataLoader(
        cases, 2, crop_size, crop_size, labels, FOREGROUND_SHARE, None, None, probabilistic_oversampling=True
    )
    step = iter(range(1 << 40))

    def ours() -> int:
        crops[next(step)]
        return 2

    def theirs() -> int:
        next(batches)
        return 2

    def theirs_images() -> int:
        case, _, _, properties = cases.load_case(cases.identifiers[np.random.randint(len(cases.identifiers))])
        force = np.random.uniform() < FOREGROUND_SHARE
        low, high = batches.get_bbox(case.shape[1:], force, properties["class_locations"])
        torch.from_numpy(crop_and_pad_nd(case, [list(pair) for pair in zip(low, high, strict=True)], 0)).float()
        return 1

    readers = {
        "swinfuse_pretrain": ours,
        "nnU-Net's loader": theirs,
        "nnU-Net's loader, images only": theirs_images,
    }
    rates: dict[str, list[float]] = {reader: [] for reader in readers}
    for _ in range(5):
        for reader, work in readers.items():
            rates[reader].append(rate(work, options.seconds))
    print("| reader | crops / s / worker: median | lowest | highest |\n| --- | --- | --- | --- |")
    for reader, values in rates.items():
        print(f"| {reader} | {statistics.median(values):.1f} | {min(values):.1f} | {max(values):.1f} |")
    if options.steps:
        crops.steps = options.steps
        watch_memory(crops)
