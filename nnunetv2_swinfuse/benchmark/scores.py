"""Scores from the per-case table: one for each case and run, means, ranks, and which classes were there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from nnunetv2_swinfuse.benchmark.metrics import HIGHER_IS_BETTER
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.statistics import crossed_bootstrap, independent_groups

# Of a class that is rightly absent: reference and prediction are both empty.
PERFECT = {"Dice": 1.0, "SurfaceDice": 1.0, "HD95": 0.0, "VolumeError": 0.0}


@dataclass(frozen=True)
class Scores:
    """One score for each case and run of each arm, on one dataset with one number of labels.

    Attributes:
        dataset, labels, metric: of what.
        folds: for each fold values (arms, runs, cases).
        arms, seeds: names along the first two axes.
        cases: names along the last, for each fold.
    """

    dataset: str
    labels: str
    metric: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    cases: tuple[tuple[str, ...], ...]
    folds: tuple[np.ndarray, ...]

    def of(self, arm: str) -> list[np.ndarray]:
        """(runs, cases) for each fold."""
        index = self.arms.index(arm)
        return [fold[index] for fold in self.folds]

    def with_crossed_folds(self) -> Scores:
        """All folds as one, for seeds whose folds all begin with the same encoder, so that a run has an effect in all.

        Folds would be taken for independent trainings otherwise.
        """
        cases = tuple(case for names in self.cases for case in names)
        return replace(self, cases=(cases,), folds=(np.concatenate(self.folds, axis=2),))

    def with_independent_runs(self, labelled: Mapping[int, Hashable]) -> Scores:
        """One run for each set of labelled cases, the mean over the seeds that drew it; see `independent_groups`.

        Args:
            labelled: the labelled cases of each seed.
        """
        groups = independent_groups({seed: labelled[seed] for seed in self.seeds})
        places = [[self.seeds.index(seed) for seed in group] for group in groups]
        folds = tuple(np.stack([fold[:, of_group].mean(axis=1) for of_group in places], axis=1) for fold in self.folds)
        return replace(self, seeds=tuple(group[0] for group in groups), folds=folds)

    def run_means(self, arm: str) -> np.ndarray:
        """Mean over the cases of all folds, for each run."""
        return np.concatenate(self.of(arm), axis=1).mean(axis=1)

    def case_means(self, arm: str) -> np.ndarray:
        """Mean over the runs, for each case of all folds."""
        return np.concatenate(self.of(arm), axis=1).mean(axis=0)


def case_scores(rows: pd.DataFrame, dataset: str, labels: str, metric: str, arms: Sequence[str]) -> Scores:
    """The mean over the classes of each case and run.

    A class that neither the reference nor any prediction of these arms has is left out of that case. Where some
    prediction has it, being rightly absent counts as perfect and being invented as it was measured.

    Args:
        rows: of the per-case table.
        dataset, labels, metric: which rows.
        arms: that are compared; all must have the same runs and cases.

    Raises:
        BenchmarkError: when a value is missing, or no case has any class.
    """
    chosen = rows[
        (rows["dataset"] == dataset)
        & (rows["labels"] == labels)
        & (rows["metric"] == metric)
        & rows["arm"].isin(list(arms))
    ]
    keys = ["fold", "case", "class"]
    by_run = chosen.assign(absent=(chosen["empty"] == "both").astype(float)).set_index([*keys, "arm", "seed"])
    table, absent = (by_run[column].unstack(["arm", "seed"]) for column in ("value", "absent"))
    seeds = tuple(sorted(int(seed) for seed in chosen["seed"].unique()))
    wanted = pd.MultiIndex.from_product([list(arms), list(seeds)])
    table, absent = table.reindex(columns=wanted), absent.reindex(columns=wanted)
    counts = chosen.groupby(keys, observed=True).size().reindex(table.index)
    if not (counts == len(wanted)).all():
        fold, case, name = counts.index[counts != len(wanted)][0]
        raise BenchmarkError(
            f"{dataset}, {labels} labels: case {case}, class {name}, fold {fold} has {counts.min()} values of "
            f"{metric}, expected {len(wanted)} (arms {', '.join(arms)}; seeds {', '.join(map(str, seeds))})"
        )
    everywhere = (absent == 1).all(axis=1)
    table = table.mask(absent == 1, PERFECT[metric])[~everywhere]
    # A mean would leave the class out for the arms and runs that lack it.
    lacking = table.index[table.isna().any(axis=1)]
    if len(lacking):
        fold, case, name = lacking[0]
        raise BenchmarkError(
            f"{dataset}, {labels} labels: case {case}, class {name}, fold {fold} has no value of {metric} although the "
            "class is there; the per-case table is damaged"
        )
    if table.empty:
        raise BenchmarkError(f"{dataset}, {labels} labels: no test case has any class, in reference or prediction")
    by_case = table.groupby(level=["fold", "case"], observed=True).mean()
    folds, names = [], []
    for fold in sorted(by_case.index.get_level_values("fold").unique()):
        block = by_case.loc[fold]
        names.append(tuple(str(case) for case in block.index))
        folds.append(block.to_numpy().T.reshape(len(arms), len(seeds), len(block)))
    return Scores(dataset, labels, metric, tuple(arms), seeds, tuple(names), tuple(folds))


def mean_ranks(score: Scores) -> dict[str, tuple[float, float, float]]:
    """Mean rank of each arm over runs and cases, 1 being best, with a bootstrap interval (95 %)."""
    sign = -1 if HIGHER_IS_BETTER[score.metric] else 1
    ranks = [stats.rankdata(sign * fold, axis=0).transpose(1, 2, 0) for fold in score.folds]
    drawn = crossed_bootstrap(ranks)
    means = np.concatenate([fold.reshape(-1, len(score.arms)) for fold in ranks]).mean(axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {arm: (float(means[i]), float(low[i]), float(high[i])) for i, arm in enumerate(score.arms)}


def emptiness_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """How often each arm missed a class, invented it or was right that it is absent; one row for each class."""
    chosen = rows[(rows["metric"] == "Dice")]
    table = chosen.assign(empty=chosen["empty"].replace("", "present")).pivot_table(
        index=["dataset", "labels", "arm", "class"], columns="empty", values="case", aggfunc="count", fill_value=0
    )
    for name in ("present", "missed", "invented", "both"):
        if name not in table.columns:
            table[name] = 0
    return table[["present", "missed", "invented", "both"]].reset_index()


def absent_classes(rows: pd.DataFrame) -> list[str]:
    """Classes that no reference has: of these nothing can be said."""
    chosen = rows[rows["metric"] == "Dice"].assign(present=rows["empty"].isin(["", "missed"]))
    present = chosen.groupby(["dataset", "class"], observed=True)["present"].any()
    return [f"{name} in {dataset}" for (dataset, name), anywhere in present.items() if not anywhere]


def summary_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Figures as in nnU-Net's summary.json: mean over the cases that have a value, class by class, for each cell."""
    keys: list[str] = ["cell", "arm", "dataset", "labels", "seed", "fold", "metric", "class"]
    return rows.groupby(keys, observed=True)["value"].mean().reset_index()


def foreground_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Foreground mean of each cell: the mean of :func:`summary_means` over the classes that have a value.

    nnU-Net's own is the same where all classes have one, and NaN where a class is absent in all cases.
    """
    keys: list[str] = ["cell", "arm", "dataset", "labels", "seed", "fold", "metric"]
    return summary_means(rows).groupby(keys, observed=True)["value"].mean().reset_index()
