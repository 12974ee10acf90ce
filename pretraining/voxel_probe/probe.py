"""The voxel probe of one arm: sample the labelled cases, fit a layer for each number of them, measure on test cases."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from pretraining.voxel_probe import linear
from pretraining.voxel_probe.cases import SHIFT, Case, cases_digest, name_seed
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

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the fitted dataset calls the classes, in the same order."""
        names = self.fitted.labels.values()
        return tuple(next(name for name in names if label_key(name) == key) for key in self.labels)


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


@dataclass(frozen=True)
class FittedLayer:
    """A layer and what it was fitted on: the first `labelled` cases of its fitted dataset."""

    task: Task
    labelled: int
    layer: LinearLayer


def run_arm(arm: Arm, plan: Plan, results: Results, overwrite: bool = False, quiet: bool = False) -> None:
    """Adds the rows of an arm that do not exist yet.

    Features of each case are computed once, for all layers that are fitted or measured on it.

    Args:
        arm: features.
        plan: tasks.
        results: rows of earlier calls; rows are added when all test cases of a dataset are measured.
        overwrite: compute existing rows again.
        quiet: no progress bars.

    Raises:
        InputError: when existing rows are of other inputs.
    """
    missing: dict[Key, tuple[Task, str]] = {}
    for task in plan.tasks:
        for number in plan.labelled[task.fitted.name]:
            key = Key(arm.name, arm.seed, task.fitted.number, task.tested.number, number, plan.seed)
            inputs = inputs_digest(arm, task, plan, number)
            if overwrite or not results.done(key, inputs):
                missing[key] = task, inputs
    wanted: dict[str, list[tuple[Task, int]]] = defaultdict(list)
    for key, (task, _) in missing.items():
        wanted[task.fitted.name].append((task, key.labelled))
    layers = [fitted for requests in wanted.values() for fitted in fit_layers(arm, requests, plan, quiet)]
    for tested in {fitted.task.tested.name: fitted.task.tested for fitted in layers}.values():
        tested_here = [fitted for fitted in layers if fitted.task.tested.name == tested.name]
        rows = []
        for fitted, case, (label, metric, value) in measure_layers(arm, tested_here, plan, quiet):
            key = Key(arm.name, arm.seed, fitted.task.fitted.number, tested.number, fitted.labelled, plan.seed)
            rows.append(Row(key, case, label, metric, value, missing[key][1]))
        results.add(rows)


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


def fit_layers(arm: Arm, wanted: Sequence[tuple[Task, int]], plan: Plan, quiet: bool = False) -> list[FittedLayer]:
    """Fits a layer for each task and number of labelled cases, all of them of the same fitted dataset.

    Tasks with the same classes share a layer.
    """
    dataset = wanted[0][0].fitted
    numbers = sorted({number for _, number in wanted})
    # How many voxels of a case are used depends on the number of cases, so each number has a sample of its own.
    samples: dict[tuple[tuple[LabelKey, ...], int], list[tuple[Tensor, Tensor, Tensor]]] = {
        (task.labels, number): [] for task, number in wanted
    }
    labelled = plan.splits[dataset.name].labelled[: max(numbers)]
    for index, case in enumerate(_progress(labelled, f"{arm.name}: {dataset.number}, labelled", quiet)):
        loaded = arm.loader(dataset, case)
        maps = arm.features(loaded.image)
        classes = {labels: classes_of(loaded, dataset, labels) for labels in {labels for labels, _ in samples}}
        for (labels, number), parts in samples.items():
            if index < number:
                sample = draw_sample(loaded, classes[labels], number, name_seed(case.name))
                parts.append((sample_features(maps, loaded, sample), sample.classes, sample.weights))
    layers = {}
    for (labels, number), parts in samples.items():
        features, sampled, weights = (torch.cat(of_cases) for of_cases in zip(*parts, strict=True))
        layers[labels, number] = fit(features, sampled, weights, len(labels) + 1)
    return [FittedLayer(task, number, layers[task.labels, number]) for task, number in wanted]


def measure_layers(
    arm: Arm, layers: Sequence[FittedLayer], plan: Plan, quiet: bool = False
) -> Iterator[tuple[FittedLayer, str, Measure]]:
    """Layer, name of the case, and measure, for each layer and test case; all layers are tested on the same dataset."""
    dataset = layers[0].task.tested
    for case in _progress(plan.splits[dataset.name].test, f"{arm.name}: {dataset.number}, test", quiet):
        loaded = arm.loader(dataset, case)
        maps = arm.features(loaded.image)
        classes = {labels: classes_of(loaded, dataset, labels) for labels in {f.task.labels for f in layers}}
        for fitted in layers:
            logits = fitted.layer.logits(maps, loaded.labels.shape)
            task = fitted.task
            for measure in measure_case(logits, classes[task.labels], loaded.used, loaded.body, task.label_names):
                yield fitted, case.name, measure


def _progress(cases: Sequence[LabelledCase], description: str, quiet: bool) -> Iterator[LabelledCase]:
    yield from tqdm(cases, desc=description, unit="case", leave=False, disable=quiet)
