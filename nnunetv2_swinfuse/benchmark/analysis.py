"""Computes everything that a report shows from the kept results: comparisons, refusals, means, ranks, costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from nnunetv2_swinfuse.benchmark.cells import Cell, Workspace
from nnunetv2_swinfuse.benchmark.comparability import Refusal, check_rows, reasons_against
from nnunetv2_swinfuse.benchmark.comparison import Comparison, compare, sentence
from nnunetv2_swinfuse.benchmark.cost import cost_table
from nnunetv2_swinfuse.benchmark.distribution import dataset_modality, dataset_number, distribution_table
from nnunetv2_swinfuse.benchmark.experiment import Experiment
from nnunetv2_swinfuse.benchmark.metrics import METRICS
from nnunetv2_swinfuse.benchmark.noninferiority import NonInferiority, rule_out_loss
from nnunetv2_swinfuse.benchmark.scores import (
    Scores,
    absent_classes,
    case_scores,
    emptiness_counts,
    foreground_means,
    mean_ranks,
    summary_means,
)
from nnunetv2_swinfuse.benchmark.splits import Split, labelled_sets, read_splits, repeated_draws
from nnunetv2_swinfuse.benchmark.table import read_kept, read_rows
from nnunetv2_swinfuse.statistics import critical_difference

PRIMARY = "Dice"
# Dataset, labels, first and second arm.
Pair = tuple[str, str, str, str]


@dataclass(frozen=True)
class Group:
    """All arms that may be compared with each other on a dataset with a number of labels."""

    dataset: str
    labels: str
    scores: Scores
    ranks: dict[str, tuple[float, float, float]]
    critical_difference: float


@dataclass(frozen=True)
class Analysis:
    """What a report shows.

    Attributes:
        comparisons: by metric; that of Dice is the declared family, the others are described beside it.
        no_loss: the declared tests of non-inferiority that can be made.
        distribution: see `distribution.distribution_table`.
        refusals: comparisons that are not made.
        groups: by dataset and number of labels.
        means: of each class and of the foreground, over runs; see :func:`means_table`.
        empties: see `comparison.emptiness_counts`.
        absent: classes that no reference has.
        repeated: seeds that count as one run, as sentences.
        costs: of each arm and dataset.
        results: of each finished cell.
        cells: of the experiment.
    """

    comparisons: dict[str, list[Comparison]]
    no_loss: list[NonInferiority]
    distribution: pd.DataFrame
    refusals: list[Refusal]
    groups: list[Group]
    means: pd.DataFrame
    empties: pd.DataFrame
    absent: list[str]
    repeated: list[str]
    costs: pd.DataFrame
    results: dict[str, dict[str, Any]]
    cells: list[Cell]

    @property
    def sentences(self) -> list[str]:
        """The verdicts as sentences."""
        return [sentence(comparison) for comparison in self.comparisons[PRIMARY]] + [
            claim.sentence for claim in self.no_loss
        ]

    @property
    def unchecked_encoders(self) -> list[str]:
        """Arms whose encoder was given as a file, so that nobody knows which images it has seen."""
        found = set()
        for cell in self.cells:
            encoder = self.results.get(cell.name, {}).get("encoder")
            if encoder and encoder.get("saw") is None:
                found.add(cell.arm)
        return sorted(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not defined is None."""
        return {
            "verdicts": [
                {
                    **_plain(asdict(comparison)),
                    "interval": _plain(list(comparison.estimate.interval())),
                    "verdict": comparison.verdict,
                    "sentence": sentence(comparison),
                }
                for comparison in self.comparisons[PRIMARY]
            ],
            "other_metrics": [
                {**_plain(asdict(comparison)), "interval": _plain(list(comparison.estimate.interval()))}
                for metric, comparisons in self.comparisons.items()
                if metric != PRIMARY
                for comparison in comparisons
            ],
            "no_loss": [
                {**_plain(asdict(claim)), "shown": claim.shown, "sentence": claim.sentence} for claim in self.no_loss
            ],
            "distribution": self.distribution.to_dict("records"),
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "ranks": [{"dataset": g.dataset, "labels": g.labels, "ranks": g.ranks} for g in self.groups],
            "means": _plain(self.means.to_dict("records")),
            "empty": self.empties.to_dict("records"),
            "absent_classes": self.absent,
            "repeated_draws": self.repeated,
            "unchecked_encoders": self.unchecked_encoders,
            "cost": _plain(self.costs.to_dict("records")),
        }


def analyse(experiment: Experiment, workspace: Workspace, cells: Sequence[Cell], command: Sequence[str]) -> Analysis:
    """Compares what is done.

    Args:
        experiment, workspace, cells: what and where.
        command: that resumes the experiment, for cells that are not finished.

    Raises:
        BenchmarkError: when the kept table does not hold what the splits say.
    """
    # Those whose rows are in the table.
    results = read_kept(workspace.results)
    rows = read_rows(workspace.results)
    rows = rows[rows["cell"].isin([cell.name for cell in cells])]
    check_rows(rows, cells, workspace.results)
    splits = read_splits(workspace.results)
    by_group: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        arms = by_group.setdefault((cell.dataset, str(cell.labels)), {})
        arms.setdefault(cell.arm, []).append(cell)
    refusals: list[Refusal] = []
    pairs: list[Pair] = []
    claims: list[Pair] = []
    groups: list[Group] = []
    for (dataset, labels), arms in by_group.items():

        def against(first: str, second: str, arms: dict[str, list[Cell]] = arms) -> tuple[str, ...]:
            return reasons_against(arms[first], arms[second], results, experiment, command)

        claimed = [
            (first, second) for first, second, number in _claims(experiment) if dataset_number(dataset) == number
        ]
        for wanted, made in ((experiment.comparisons, pairs), (claimed, claims)):
            for first, second in wanted:
                if reasons := against(first, second):
                    refusals.append(Refusal(first, second, dataset, labels, reasons))
                else:
                    made.append((dataset, labels, first, second))
        together: list[str] = []
        for name in arms:
            # With itself: whether its own runs may be put together.
            if not any(against(name, other) for other in (*together, name)):
                together.append(name)
        if len(together) > 1:
            scores = case_scores(rows, dataset, labels, PRIMARY, together)
            blocks = sum(map(len, scores.cases))
            difference = critical_difference(len(together), blocks, experiment.alpha)
            groups.append(Group(dataset, labels, scores, mean_ranks(scores), difference))
    comparable = {(group.dataset, group.labels): group.scores.arms for group in groups}
    comparisons = {}
    for metric in METRICS:
        # Of the two arms alone: a class that a third one invents counts in neither.
        family = [
            (pair_scores(experiment, splits[dataset], rows, dataset, labels, metric, first, second), first, second)
            for dataset, labels, first, second in pairs
        ]
        baselines = {
            group: case_scores(rows, *group, metric, [experiment.baseline])
            for group, together_with in comparable.items()
            if experiment.baseline in together_with
        }
        declared = len(experiment.comparisons) * len(by_group)
        comparisons[metric] = compare(family, experiment.baseline, experiment.alpha, declared, baselines)
    means = means_table(rows)
    modalities = {dataset: dataset_modality(dataset) for dataset, _ in by_group}
    return Analysis(
        comparisons,
        _no_loss(experiment, splits, rows, claims),
        distribution_table(experiment, comparisons[PRIMARY], modalities, means),
        list(dict.fromkeys(refusals)),
        groups,
        means,
        emptiness_counts(rows),
        absent_classes(rows),
        repeated_draws(experiment, {dataset: splits[dataset] for dataset, _ in by_group}),
        cost_table(cells, results),
        results,
        list(cells),
    )


def pair_scores(
    experiment: Experiment,
    splits: Mapping[str, Split],
    rows: pd.DataFrame,
    dataset: str,
    labels: str,
    metric: str,
    first: str,
    second: str,
) -> Scores:
    """Scores of two arms, as differences between them are estimated from them.

    Args:
        experiment: says which folds share an encoder.
        splits: of the dataset that the arms were trained on; seeds that drew the same labelled cases are one run.
        rows, dataset, labels, metric: see :func:`case_scores`.
        first, second: names of the arms.
    """
    scores = case_scores(rows, dataset, labels, metric, [first, second])
    scores = scores.with_independent_runs(labelled_sets(splits, labels, scores.seeds, experiment.trained_folds))
    return scores.with_crossed_folds() if experiment.folds_share_encoders(first, second) else scores


def _claims(experiment: Experiment) -> tuple[tuple[str, str, int], ...]:
    return experiment.no_loss.pairs if experiment.no_loss else ()


def _no_loss(
    experiment: Experiment, splits: Mapping[str, Mapping[str, Split]], rows: pd.DataFrame, claims: Sequence[Pair]
) -> list[NonInferiority]:
    """Tests the claims (dataset, labels, first, second) that can be tested, as part of those that are declared."""
    if experiment.no_loss is None:
        return []
    family = [
        (pair_scores(experiment, splits[dataset], rows, dataset, labels, PRIMARY, first, second), first, second)
        for dataset, labels, first, second in claims
    ]
    declared = len(experiment.no_loss.pairs) * len(experiment.labels)
    return rule_out_loss(family, experiment.no_loss.margin, experiment.alpha, declared)


def means_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over runs, for each arm, dataset, labels, metric and class (and `foreground`, see below).

    A run's figure of a class is that of its summary.json, its foreground the mean of the classes that have a value.
    `mean` and `deviation`, the standard deviation, are over the runs that have a value; `runs` counts all.
    """
    foreground = foreground_means(rows).assign(**{"class": "foreground"})
    both = pd.concat([summary_means(rows), foreground], ignore_index=True)
    keys = ["dataset", "labels", "arm", "metric", "class"]
    grouped = both.groupby(keys, observed=True, sort=True)["value"]
    return grouped.agg(mean="mean", deviation="std", runs="size").reset_index()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
