"""Small collections, configurations and batches for the tests of pretraining; none needs nnU-Net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_swinfuse.demo.volumes import make_patient
from pretraining.collections.collection import ORIENTATION, Collection, Patient, Volume
from pretraining.configuration import Configuration
from pretraining.preprocessed.collection import INDEX, INDEX_VERSION, TABLE, IndexTable, PreprocessedCollection
from pretraining.preprocessed.volume_file import NativeGrid, StoredGrid, VolumeMetadata, write_volume

TINY = {
    "crop_size": (16, 16, 16),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "batch_size": 2,
    "feature_size": 12,
    "depths": (2,),
    "num_heads": (2,),
    "window_size": 3,
    "dim_layers": 1,
    "contrastive_loss": "nt_xent",
    "dim_max_cells": 64,
    "drop_path_rate": 0.2,
    "steps": 6,
    "warmup_steps": 2,
    "density_warmup_steps": 2,
    "density_samples": 64,
    "validate_every": 4,
    "validation_batches": 1,
    "checkpoint_every": 2,
    "workers": 0,
    "device": "cpu",
}
# The other backbone; its third stage has the depth of the second.
RESENC = {"backbone": "resenc", "feature_size": 8, "depths": (1, 2)}
CPU = torch.device("cpu")


def tiny(**changes) -> Configuration:
    return Configuration(**{**TINY, **changes})


def tiny_arguments(**changes) -> list[str]:
    """The same settings as words of a command line."""
    words = []
    for name, value in {**TINY, **changes}.items():
        if name == "strides":
            words += ["--strides", str([list(stride) for stride in value])]
        else:
            words += [f"--{name}", *(str(v) for v in (value if isinstance(value, tuple) else (value,)))]
    return words


def synthetic_collection(root: Path, patients: int = 4) -> PreprocessedCollection:
    """Registered synthetic heads as preprocessing leaves them, in `preprocessed/SynthRAD/swinfuse`, without nnU-Net.

    The last quarter of the patients is for validation.
    """
    folder = root / "preprocessed" / "SynthRAD" / "swinfuse"
    members, split = [], {}
    for number in range(patients):
        identifier = f"1BA{number + 1:03d}"
        head = make_patient(number)
        ct = np.clip(head.ct, -1000, 1000) / 500
        volumes = []
        for domain, voxels in (("CT", ct), ("MR", (head.mr - head.mr.mean()) / head.mr.std())):
            path = folder / f"{identifier}_{domain}.b2nd"
            points = np.argwhere(head.mask)[::50]
            metadata = VolumeMetadata(points, float(voxels.min()), head.spacing)
            write_volume(path, voxels[None].astype(np.float32), metadata, (1, 16, 16, 16), (1, 8, 8, 8))
            volumes.append(Volume(domain, domain, path))
        members.append(Patient(identifier, tuple(volumes), paired=True))
        split[identifier] = "validation" if number >= patients - max(patients // 4, 1) else "train"
    collection = Collection("SynthRAD", "SynthRAD", folder, tuple(members))
    write_index(folder, collection, split, head.ct.shape, spacing=list(head.spacing), crop_size=[16, 16, 16])
    return PreprocessedCollection.open(folder)


def write_index(
    folder: Path,
    collection: Collection,
    split: dict[str, str],
    shape: tuple[int, ...],
    grids: dict[str, StoredGrid] | None = None,
    **header: Any,
) -> None:
    """Writes the index of volumes that are in the folder already, of one shape, or of `grids` by their file names.

    `header` changes `index.json`.
    """
    files = [volume.path.relative_to(folder).as_posix() for volume in collection.volumes]
    modalities = sorted({volume.modality for volume in collection.volumes})
    domains = [volume.domain for volume in collection.volumes]
    grids = dict.fromkeys(files, StoredGrid(shape, NativeGrid((1.0, 1.0, 1.0), "RAS"))) | (grids or {})
    IndexTable.of(collection, split, modalities, files, grids).write(folder / TABLE)
    content = {
        "version": INDEX_VERSION,
        "name": collection.name,
        "layout": collection.layout,
        "hash": "h",
        "spacing": [1.0, 1.0, 1.0],
        "orientation": ORIENTATION,
        "crop_size": [8, 8, 8],
        "validation_share": 0.1,
        "normalisation": {"ct": {}, "mr_use_mask": False},
        "patients": len(collection.patients),
        "pairs": sum(patient.paired for patient in collection.patients),
        "volumes": {domain: domains.count(domain) for domain in ("CT", "MR")},
        "modalities": modalities,
        "table": TABLE,
    }
    (folder / INDEX).write_text(json.dumps({**content, **header}))


def synthetic_batch(batch: int = 2, size: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    crops = {name: torch.randn(batch, 1, size, size, size, generator=generator) for name in ("ct", "mr")}
    patients = [(f"patient{index}", f"patient{index}") for index in range(batch)]
    every = torch.ones(batch, dtype=torch.bool)
    inside = torch.tensor([0, size]).expand(batch, 3, 2)
    return {
        **crops, "ct_inside": inside, "mr_inside": inside, "ct_turnable": every, "mr_turnable": every,
        "registered": every, "patients": patients,
    }  # fmt: skip
