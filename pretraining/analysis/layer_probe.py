"""What each layer knows of organs: the voxel probe, layer by layer. Invariance is worth nothing where they are lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple
from pretraining.analysis.layers import layer_maps
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.voxel_probe.cases import Case, load_case
from pretraining.voxel_probe.datasets import LabelledCase, LabelledDataset
from pretraining.voxel_probe.encoders import FrozenEncoder
from pretraining.voxel_probe.features import Maps, with_coordinates
from pretraining.voxel_probe.probe import Arm, Plan, run_arm
from pretraining.voxel_probe.results import Results, case_means

SEPARATOR = ", "


class OrganScore(NamedTuple):
    """Mean over cases and classes.

    Attributes:
        fitted, tested: numbers of the datasets.
        labelled: number of cases that the layer was fitted on.
        dice, auc: the measures of the voxel probe.
    """

    fitted: str
    tested: str
    labelled: int
    dice: float
    auc: float

    @property
    def task(self) -> str:
        """The dataset, or both."""
        return self.fitted if self.fitted == self.tested else f"{self.fitted} to {self.tested}"


def probe_layers(
    name: str,
    seed: int,
    network: FrozenEncoder,
    description: object,
    plan: Plan,
    normalisation: Normalisation,
    crop_size: Triple,
    divisor: Triple,
    preprocessed_root: Path,
    results: Results,
    overwrite: bool = False,
) -> dict[str, list[OrganScore]]:
    """Fits and measures the voxel probe on every layer of an encoder, each with the coordinates of the voxels.

    Args:
        name, seed: of the encoder.
        network: the encoder.
        description: of its weights, for the digest of the rows.
        plan: datasets, splits and numbers of labelled cases.
        normalisation, crop_size, divisor, preprocessed_root: see :func:`pretraining.voxel_probe.cases.load_case`.
        results: rows of earlier calls; those of this encoder are added.
        overwrite: compute existing rows again.

    Returns:
        Scores by layer, one for each task and number of labelled cases.
    """

    @cache
    def cached_case(dataset: str, case: LabelledCase) -> Case:
        return load_case(case, datasets[dataset], normalisation, crop_size, divisor, preprocessed_root)

    # Tensors are told apart by identity, and `cached_case` returns the same one for a case each time.
    maps = lru_cache(maxsize=None)(partial(layer_maps, network))

    def of_layer(layer: str, image: Tensor) -> Maps:
        return [maps(image)[layer][0]]

    def loader(dataset: LabelledDataset, case: LabelledCase) -> Case:
        return cached_case(dataset.name, case)

    datasets = {d.name: d for task in plan.tasks for d in (task.fitted, task.tested)}
    first = plan.tasks[0].fitted
    scores = {}
    for layer in maps(loader(first, plan.splits[first.name].labelled[0]).image):
        features = with_coordinates(partial(of_layer, layer))
        inputs = [description, layer, list(crop_size), list(divisor), str(normalisation)]
        run_arm(Arm(name + SEPARATOR + layer, seed, features, loader, inputs), plan, results, overwrite)
        scores[layer] = layer_scores(results, name, seed, layer, plan)
    return scores


def layer_scores(results: Results, name: str, seed: int, layer: str, plan: Plan) -> list[OrganScore]:
    """Means of the rows of one layer of an encoder on the plan's split."""
    scores = []
    for task in plan.tasks:
        for labelled in plan.labelled[task.fitted.name]:
            rows = [
                row for row in results.rows
                if (row.key.arm, row.key.seed, row.key.labelled) == (name + SEPARATOR + layer, seed, labelled)
                and (row.key.dataset, row.key.tested_on) == (task.fitted.number, task.tested.number)
                and row.key.split == plan.seed
            ]  # fmt: skip
            dice, auc = (_mean(case_means(rows, metric)) for metric in ("dice", "auc"))
            scores.append(OrganScore(task.fitted.number, task.tested.number, labelled, dice, auc))
    return scores


def _mean(values: Mapping[str, Mapping[int, float]]) -> float:
    of_cases: Sequence[float] = [fmean(by_seed.values()) for by_seed in values.values()]
    return fmean(of_cases) if of_cases else float("nan")
