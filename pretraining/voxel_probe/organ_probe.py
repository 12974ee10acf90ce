"""The voxel probe as a health measure of a run: do its features tell organs apart better than a random encoder's?

Fine-tuning needs features that do, and no proxy loss shows it: a run can lower all of its losses while its features
become poorer than those of an encoder with random weights.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.modalities import ModalityMap
from pretraining.configuration import Configuration
from pretraining.model import PretrainingModel
from pretraining.monitoring.organs import BEST_RANDOM, COORDINATES, DICE, HANDMADE, RANDOM
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.voxel_probe.cases import VERSION, Case, cases_digest, load_case
from pretraining.voxel_probe.datasets import LabelledCase, find_dataset, split_cases
from pretraining.voxel_probe.encoders import FrozenEncoder
from pretraining.voxel_probe.features import (
    Features,
    Maps,
    coordinate_features,
    encoder_features,
    handmade_features,
    with_coordinates,
)
from pretraining.voxel_probe.probe import Arm, Plan, Task, fit_layers, measure_layers

LABELLED = (2, 4)
TEST_CASES = 8
CROP = (64, 64, 64)
RANDOM_ENCODERS = 3
# Scores of the random encoders and controls, in the run's folder: they need not be computed again after a resumption.
FLOORS = "organ_probe.json"
# Mean Dice by dataset and number of labelled cases, such as `501_2`.
Scores = dict[str, float]


@dataclass(frozen=True)
class OrganDatasets:
    """The labelled datasets of a run's organ probe, as the command line names them.

    Attributes:
        names: folders in nnUNet_raw, or numbers of nnU-Net datasets.
        raw, preprocessed: nnU-Net's folders; prepared cases are kept in the latter.
        modality_words: which modality is CT and which MR, such as `T1=MR`.
    """

    names: tuple[str, ...]
    raw: Path
    preprocessed: Path
    modality_words: tuple[str, ...] = ()

    def plan(self) -> Plan:
        """Fits on 2 and on 4 labelled cases, measures on at most 8 others.

        Raises:
            InputError: for a dataset that does not exist, has no labels, or too few cases.
        """
        modalities = ModalityMap.from_words(list(self.modality_words))
        tasks, splits, labelled = [], {}, {}
        for name in self.names:
            dataset = find_dataset(name, self.raw, modalities)
            count = len(dataset.cases)
            if count < 2 * LABELLED[0]:
                raise InputError(
                    f"{self.raw / dataset.name}: {count} labelled case(s); the organ probe of a run needs at least "
                    f"{2 * LABELLED[0]}: {LABELLED[0]} to fit on, others to measure on. Leave it out of --probe"
                )
            split = split_cases(dataset, 0, min(TEST_CASES, count // 2))
            tasks.append(Task(dataset, dataset))
            splits[dataset.name] = split
            labelled[dataset.name] = tuple(number for number in LABELLED if number <= len(split.labelled))
        return Plan(tuple(tasks), splits, labelled)


class OrganProbe:
    """Dice of a linear layer on the features of a model's encoder, and of its floors.

    Args:
        plan: datasets and cases.
        cases: all cases of the plan, by the names of dataset and case.
        floors: scores of what the model's are compared with, by the names in :mod:`pretraining.monitoring.organs`.
    """

    def __init__(self, plan: Plan, cases: Mapping[tuple[str, str], Case], floors: Mapping[str, Scores]):
        self._plan, self._cases, self._floors = plan, cases, floors

    @classmethod
    def prepare(
        cls, datasets: OrganDatasets, normalisation: Normalisation, configuration: Configuration, folder: Path
    ) -> OrganProbe:
        """Loads the cases, preprocessing those that are new, and measures random encoders and controls.

        Args:
            datasets: the labelled datasets.
            normalisation: spacing and intensities of the run's collection.
            configuration: configuration of the run; random encoders have its sizes.
            folder: folder of the run, where the floors are kept.

        Raises:
            InputError: for datasets or cases that cannot be used.
        """
        plan = datasets.plan()
        divisor = configuration.topology.downsampling
        cases = {
            (task.fitted.name, case.name): load_case(
                case, task.fitted, normalisation, CROP, divisor, datasets.preprocessed
            )
            for task in plan.tasks
            for case in tqdm(_cases_of(plan, task), desc=f"organ probe: {task.fitted.name}", unit="case", leave=False)
        }
        digest = _digest(plan, configuration, normalisation)
        file = folder / FLOORS
        stored = json.loads(file.read_text()) if file.is_file() else {}
        if stored.get("digest") != digest:
            stored = {"digest": digest, "floors": _floors(plan, cases, configuration, normalisation)}
            with atomic_write(file) as temporary:
                temporary.write_text(json.dumps(stored, indent=1) + "\n")
        return cls(plan, cases, stored["floors"])

    @torch.no_grad()
    def measure(self, model: PretrainingModel) -> dict[str, float]:
        """Mean Dice for each dataset and number of labelled cases, and that of the floors, by name.

        Args:
            model: in evaluation mode, on any device; images are encoded as single images.
        """
        scores = organ_scores(with_coordinates(_on_device_of(model)), self._plan, self._cases)
        return {
            f"{name}_{task}": value
            for name, of_name in {DICE: scores, **self._floors}.items()
            for task, value in of_name.items()
        }


def organ_scores(features: Features, plan: Plan, cases: Mapping[tuple[str, str], Case]) -> Scores:
    """Mean Dice over the classes and test cases, by dataset and number of labelled cases."""
    arm = Arm(DICE, 0, features, lambda dataset, case: cases[dataset.name, case.name], None)
    dice: dict[str, list[float]] = defaultdict(list)
    for task in plan.tasks:
        wanted = [(task, number) for number in plan.labelled[task.fitted.name]]
        layers = fit_layers(arm, wanted, plan, quiet=True)
        for fitted, _, (_, metric, value) in measure_layers(arm, layers, plan, quiet=True):
            if metric == "dice":
                dice[f"{task.fitted.number}_{fitted.labelled}"].append(value)
    return {task: fmean(values) for task, values in dice.items()}


def _floors(
    plan: Plan, cases: Mapping[tuple[str, str], Case], configuration: Configuration, normalisation: Normalisation
) -> dict[str, Scores]:
    random_scores = []
    for seed in tqdm(range(RANDOM_ENCODERS), desc="organ probe: random encoders", unit="encoder", leave=False):
        network = FrozenEncoder(
            configuration.encoder_settings, configuration.topology.strides, normalisation.spacing, seed
        )
        features = with_coordinates(encoder_features(network.patch_embed, network.encoder))
        random_scores.append(organ_scores(features, plan, cases))
    return {
        RANDOM: {task: fmean(scores[task] for scores in random_scores) for task in random_scores[0]},
        BEST_RANDOM: {task: max(scores[task] for scores in random_scores) for task in random_scores[0]},
        HANDMADE: organ_scores(with_coordinates(handmade_features), plan, cases),
        COORDINATES: organ_scores(coordinate_features, plan, cases),
    }


def _on_device_of(model: PretrainingModel) -> Features:
    """Features of a model's encoder, computed on its device and returned on the CPU."""
    device = next(model.parameters()).device
    features = encoder_features(model.patch_embed, model.encoder)

    def on_cpu(image: Tensor) -> Maps:
        return [feature.float().cpu() for feature in features(image.to(device))]

    return on_cpu


def _cases_of(plan: Plan, task: Task) -> Sequence[LabelledCase]:
    split = plan.splits[task.fitted.name]
    return [*split.labelled[: max(plan.labelled[task.fitted.name])], *split.test]


def _digest(plan: Plan, configuration: Configuration, normalisation: Normalisation) -> str:
    """Of all that the floors depend on."""
    sizes = [configuration.encoder_settings.to_dict(), [list(stride) for stride in configuration.topology.strides]]
    cases = [
        [task.fitted.name, plan.labelled[task.fitted.name], cases_digest(_cases_of(plan, task))] for task in plan.tasks
    ]
    content = json.dumps([VERSION, RANDOM_ENCODERS, CROP, sizes, asdict(normalisation), cases], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
