"""Preprocessing of a collection of tiny volumes, and what it has written."""

import json
from pathlib import Path

import blosc2
import numpy as np

from pretraining.collections.resolve import find_collection
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessing.preprocess import preprocess


def run(root: Path, *, unpaired: bool = False, **options) -> Path:
    collection = find_collection("A", root / "raw", unpaired)
    return preprocess(collection, root / "preprocessed", **{"crop_size": (8, 8, 8), "processes": 1, **options})


def index_of(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


def split_of(folder: Path) -> dict[str, str]:
    return PreprocessedCollection.open(folder).split_by_patient()


def voxels_of(path: Path) -> np.ndarray:
    return blosc2.open(str(path), mode="r")[0]


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.b2nd")}
