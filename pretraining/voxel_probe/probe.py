"""The voxel probe of one arm: sample the labelled cases, fit a layer for each number of them, measure on test cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from pretraining.voxel_probe import linear
from pretraining.voxel_probe.cases import SHIFT, Case, cases_digest
from pretraining.voxel_probe.datasets import (
    CaseSplit,
    LabelKey,
    LabelledCase,
    LabelledDataset,
    common_labels,
    label_key,
)
from pretraining.voxel_probe.features import Features
from pretraining.voxel_probe.linear import LinearLayer, draw_sample, fit, sample_features
from pretraining.voxel_probe.measures import Measure, measure_case
from pretraining.voxel_probe.results import Key, Results, Row

# Loads a case of a dataset.
Loader = Callable[[LabelledDataset, LabelledCase], Case]


@dataclass(frozen=True)
class Arm:
    """Features to probe.

    Attributes:
        name: name of the arm.
        seed: seed of its encoder; 0 for features without one.
        features: features of an image, with the coordinates.
        loader: loader of cases, preprocessed as these features need them.
        description: what the features and the preprocessing are, for the digest of the inputs; plain JSON values.
    """

    name: str
    seed: int
    features: Features
    loader: Loader
    description: object


@dataclass(frozen=True)
class Task:
    """Datasets to fit and to measure on.

    Attributes:
        fitted: the dataset whose labelled cases the layer is fitted on.
        tested: the dataset whose test cases it is measured on; another one in the zero-shot probe.
    """

    fitted: LabelledDataset
    tested: LabelledDataset

    @property
    def labels(self) -> tuple[LabelKey, ...]:
        """The classes, without background: the labels that both datasets have."""
        return common_labels(self.fitted, self.tested)


@dataclass(frozen=True)
class Plan:
    """What is fitted and measured.

    Attributes:
        tasks: datasets.
        splits: splits of each dataset, by its name.
        labelled: numbers of labelled cases, by the name of the fitted dataset.
        seed: seed of the splits.
    """

    tasks: tuple[Task, ...]
    splits: dict[str, CaseSplit]
    labelled: dict[str, tuple[int, ...]]
    seed: int = 0


def run_arm(arm: Arm, plan: Plan, results: Results, overwrite: bool = False, quiet: bool = False) -> None:
    """Adds the rows of an arm that do not exist yet.

    Args:
        arm: features.
        plan: tasks.
        results: rows of earlier calls; rows are added when all test cases of a task are measured.
        overwrite: compute existing rows again.
        quiet: no progress bars.

    Raises:
        InputError: when existing rows are of other inputs.
    """
    for task in plan.tasks:
        missing = {}
        for number in plan.labelled[task.fitted.name]:
            key = Key(arm.name, arm.seed, task.fitted.number, task.tested.number, number, plan.seed)
            inputs = inputs_digest(arm, task, plan, number)
            if overwrite or not results.done(key, inputs):
                missing[number] = key, inputs
        if missing:
            results.add(_measure(arm, task, plan, missing, quiet))


def inputs_digest(arm: Arm, task: Task, plan: Plan, labelled: int) -> str:
    """Digest of all that the rows of a fitted layer depend on."""
    content = [
        arm.description,
        cases_digest(plan.splits[task.fitted.name].labelled[:labelled]),
        cases_digest(plan.splits[task.tested.name].test),
        task.labels,
        [linear.PENALTY, linear.ITERATIONS, linear.VOXELS, linear.VOXELS_PER_CASE, SHIFT],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def classes_of(case: Case, dataset: LabelledDataset, labels: Sequence[LabelKey]) -> Tensor:
    """Classes of the voxels of a case, int64 (z, y, x): 1 for the first label and so on, 0 for everything else."""
    classes = torch.zeros_like(case.labels)
    for value, name in dataset.labels.items():
        key = label_key(name)
        if key in labels:
            classes[case.labels == value] = labels.index(key) + 1
    return classes


def fit_layers(arm: Arm, task: Task, plan: Plan, numbers: Sequence[int], quiet: bool = False) -> dict[int, LinearLayer]:
    """A layer for each number of labelled cases."""
    labelled = plan.splits[task.fitted.name].labelled[: max(numbers)]
    # How many voxels of a case are used depends on the number of cases, so each number has a sample of its own.
    samples: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {number: [] for number in numbers}
    for index, case in enumerate(_progress(labelled, f"{arm.name}: {task.fitted.number}, labelled", quiet)):
        loaded = arm.loader(task.fitted, case)
        classes = classes_of(loaded, task.fitted, task.labels)
        maps = arm.features(loaded.image)
        for number in numbers:
            if index < number:
                sample = draw_sample(loaded, classes, number, _seed(case.name))
                samples[number].append((sample_features(maps, loaded, sample), sample.classes, sample.weights))
    count = len(task.labels) + 1
    layers = {}
    for number, parts_of_cases in samples.items():
        features, classes_of_voxels, weights = (torch.cat(parts) for parts in zip(*parts_of_cases, strict=True))
        layers[number] = fit(features, classes_of_voxels, weights, count)
    return layers


def measure_layers(
    arm: Arm, task: Task, plan: Plan, layers: Mapping[int, LinearLayer], quiet: bool = False
) -> Iterator[tuple[int, str, Measure]]:
    """Number of labelled cases, name of the case, and measure, for each layer and test case of a task."""
    names = tuple(next(name for name in task.fitted.labels.values() if label_key(name) == key) for key in task.labels)
    test = plan.splits[task.tested.name].test
    for case in _progress(test, f"{arm.name}: {task.tested.number}, test", quiet):
        loaded = arm.loader(task.tested, case)
        classes = classes_of(loaded, task.tested, task.labels)
        maps = arm.features(loaded.image)
        for number, layer in layers.items():
            logits = layer.logits(maps, loaded.labels.shape)
            for measure in measure_case(logits, classes, loaded.used, loaded.body, names):
                yield number, case.name, measure


def _measure(arm: Arm, task: Task, plan: Plan, missing: dict[int, tuple[Key, str]], quiet: bool) -> list[Row]:
    layers = fit_layers(arm, task, plan, list(missing), quiet)
    rows = []
    for number, case, (label, metric, value) in measure_layers(arm, task, plan, layers, quiet):
        key, inputs = missing[number]
        rows.append(Row(key, case, label, metric, value, inputs))
    return rows


def _progress(cases: Sequence[LabelledCase], description: str, quiet: bool) -> Iterator[LabelledCase]:
    yield from tqdm(cases, desc=description, unit="case", leave=False, disable=quiet)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
