"""Small collections and configurations for the tests of pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nnunetv2_swinfuse.demo.volumes import write_synthrad
from pretraining.collections.collection import Collection
from pretraining.collections.resolve import find_collection
from pretraining.configuration import Configuration
from pretraining.preprocessed.collection import INDEX, INDEX_VERSION, TABLE, IndexTable, PreprocessedCollection
from pretraining.preprocessing.preprocess import preprocess

TINY = {
    "crop_size": (16, 16, 16),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "batch_size": 2,
    "feature_size": 12,
    "depths": (2,),
    "num_heads": (2,),
    "window_size": 3,
    "dim_layers": 1,
    "dim_max_tokens": 64,
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
# The other backbone: three stages, as deep as the last one listed.
RESENC = {"backbone": "resenc", "feature_size": 8, "depths": (1, 2)}
CPU = torch.device("cpu")


def tiny(**changes) -> Configuration:
    return Configuration(**{**TINY, **changes})


def tiny_arguments(**changes) -> list[str]:
    """The same settings on a command line."""
    words = []
    for name, value in {**TINY, **changes}.items():
        if name == "strides":
            words += ["--strides", str([list(stride) for stride in value])]
        else:
            words += [f"--{name}", *(str(v) for v in (value if isinstance(value, tuple) else (value,)))]
    return words


def synthetic_collection(root: Path, patients: int = 4) -> PreprocessedCollection:
    """Registered made heads, preprocessed."""
    write_synthrad(root / "raw" / "SynthRAD", patients)
    collection = find_collection("SynthRAD", root / "raw")
    folder = preprocess(collection, root / "preprocessed", crop_size=(16, 16, 16), processes=1)
    return PreprocessedCollection.open(folder)


def write_index(folder: Path, collection: Collection, split: dict[str, str], shape: tuple[int, ...]) -> None:
    """The index of volumes of one shape that lie in the folder already."""
    files = [volume.path.relative_to(folder).as_posix() for volume in collection.volumes]
    modalities = sorted({volume.modality for volume in collection.volumes})
    IndexTable.of(collection, split, modalities, files, dict.fromkeys(files, shape)).write(folder / TABLE)
    header = {
        "version": INDEX_VERSION,
        "name": collection.name,
        "hash": "h",
        "spacing": [1.0, 1.0, 1.0],
        "crop_size": [8, 8, 8],
        "validation_share": 0.1,
        "modalities": modalities,
    }
    (folder / INDEX).write_text(json.dumps(header))


def synthetic_batch(batch: int = 2, size: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    crops = {name: torch.randn(batch, 1, size, size, size, generator=generator) for name in ("ct", "mr")}
    patients = [(f"patient{index}", f"patient{index}") for index in range(batch)]
    return {**crops, "paired": torch.ones(batch, dtype=torch.bool), "patients": patients}
