"""Tiny labelled datasets and cases for the tests of the voxel probe."""

import json
from pathlib import Path

import numpy as np
import torch

from pretraining.checkpoint import export_encoder
from pretraining.collections.collection import Volume
from pretraining.model import PretrainingModel
from pretraining.voxel_probe.cases import Case
from pretraining.voxel_probe.datasets import CaseSplit, LabelledCase, LabelledDataset
from pretraining.voxel_probe.probe import Arm, Plan, Task

from ..synthetic import tiny
from ..synthetic_volumes import ct, mr, write

SHAPE = (18, 22, 20)
NORMALISATION = {"ct": {"mean": 0.0, "std": 100.0, "percentile_00_5": -500.0, "percentile_99_5": 500.0}}


def labels(shape=SHAPE):
    """An organ at low x, one at high x, in background."""
    array = np.zeros(shape, np.uint8)
    array[4:14, 4:18, 2:8] = 1
    array[4:14, 4:18, 12:18] = 2
    return array


def write_dataset(root: Path, number=501, cases=6, modality="MR", names=("liver", "spleen"), label_array=None) -> Path:
    folder = root / f"Dataset{number:03d}_Tiny"
    for index in range(cases):
        voxels = ct(index) if modality == "CT" else mr(index)
        truth = labels() if label_array is None else label_array
        write(folder / "imagesTr" / f"c{index}_0000.nii.gz", voxels + (40 * truth).astype(voxels.dtype))
        write(folder / "labelsTr" / f"c{index}.nii.gz", truth)
    content = {
        "channel_names": {"0": modality},
        "labels": {"background": 0, **{name: value for value, name in enumerate(names, 1)}},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def case(name="a", seed=0, sign=1.0, size=16, classes=2) -> Case:
    """A case whose intensity is its class (times a sign) plus a little noise; blocks of random position."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.zeros(size // 2, size // 2, size // 2, dtype=torch.long)
    for value in range(1, classes + 1):
        z, y, x = torch.randint(0, size // 2 - 2, (3,), generator=generator).tolist()
        half[z : z + 3, y : y + 3, x : x + 3] = value
    full = half.float()
    for axis in range(3):
        full = full.repeat_interleave(2, axis)
    image = sign * (full + 0.01 * torch.randn(full.shape, generator=generator))
    everywhere = torch.ones_like(half, dtype=torch.bool)
    return Case(name, image[None, None], half, everywhere, everywhere)


def dataset(name="Dataset501_Tiny", cases=6, names=("liver", "spleen")) -> LabelledDataset:
    members = []
    for index in range(cases):
        path = Path(__file__)  # exists, so that its size can be read
        members.append(LabelledCase(f"c{index}", Volume("MR", "MR", path), path))
    return LabelledDataset(name, dict(enumerate(names, 1)), None, tuple(members))


def plan(fitted: LabelledDataset, tested: LabelledDataset | None = None, labelled=(3,), test=3) -> Plan:
    tested = tested or fitted
    splits = {d.name: CaseSplit(d.cases[:-test], d.cases[-test:]) for d in (fitted, tested)}
    return Plan((Task(fitted, tested),), splits, {fitted.name: tuple(labelled)})


def arm(features, name="arm", sign=None, seed=0, description="features") -> Arm:
    """An arm whose cases have the sign of intensities that `sign` gives for the name of their dataset."""

    def load(of, member):
        number = int(member.name[1:])
        return case(member.name, number, (sign or {}).get(of.name, 1.0))

    return Arm(name, seed, features, load, description)


def write_encoder(path, spacing=(1.0, 1.0, 1.0), **changes):
    """The encoder file of an untrained model; returns its path."""
    configuration = tiny(**changes).for_spacing(spacing)
    export_encoder(
        PretrainingModel(configuration), configuration, {"name": "A", "hash": "h"}, spacing, path, NORMALISATION
    )
    return path
