"""From the per-case table to verdicts: scores of cases, differences between arms, the declared family, ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from nnunetv2_swinfuse.benchmark.metrics import HIGHER_IS_BETTER
from nnunetv2_swinfuse.errors import INSTALL_BENCHMARK, BenchmarkError
from nnunetv2_swinfuse.statistics import (
    Estimate,
    crossed_bootstrap,
    estimate,
    rank_biserial,
    relative_change,
    runs_needed,
    wilcoxon_p,
)

Verdict = Literal["better", "worse", "not shown"]
# Of a class that is rightly absent: reference and prediction are both empty.
PERFECT = {"Dice": 1.0, "SurfaceDice": 1.0, "HD95": 0.0, "VolumeError": 0.0}
# With one difference between runs (two runs on one test split) 95 % intervals were measured to cover 89 %.
FEWEST_CLUSTERS = 2
BOOTSTRAP_DRAWS = 2000


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

    def run_means(self, arm: str) -> np.ndarray:
        """Mean over the cases of all folds, for each run."""
        return np.concatenate(self.of(arm), axis=1).mean(axis=1)

    def case_means(self, arm: str) -> np.ndarray:
        """Mean over the runs, for each case of all folds."""
        return np.concatenate(self.of(arm), axis=1).mean(axis=0)


@dataclass(frozen=True)
class Comparison:
    """One pair of arms on one dataset with one number of labels; differences are first minus second.

    Attributes:
        estimate: the difference and its error.
        relative: the difference divided by the second arm's mean; None where that is 0.
        bootstrap: limits of the percentile bootstrap over runs and cases, 95 %; the verdict does not rest on them.
        wilcoxon: p of the signed-rank test over the cases, averaged over runs.
        p, wilcoxon_adjusted: both after Holm over the family.
        effect: rank-biserial correlation.
        noise: standard deviation of the baseline's repeated runs; NaN with one.
        needed: runs of each arm that would show a difference of this size; None: no number would.
        family: number of comparisons that the experiment declares.
    """

    first: str
    second: str
    dataset: str
    labels: str
    metric: str
    estimate: Estimate
    relative: Estimate | None
    bootstrap: tuple[float, float]
    wilcoxon: float
    p: float
    wilcoxon_adjusted: float
    effect: float
    noise: float
    needed: int | None
    family: int
    alpha: float

    @property
    def contradictory(self) -> bool:
        """Whether mean and ranks differ in sign: a few cases differ much, most of the others the other way round."""
        return self.estimate.mean * self.effect <= 0

    @property
    def verdict(self) -> Verdict:
        """Both tests must agree, also on the sign, and there must be runs enough to see how much they differ."""
        if self.estimate.clusters < FEWEST_CLUSTERS or max(self.p, self.wilcoxon_adjusted) >= self.alpha:
            return "not shown"
        if self.contradictory:
            return "not shown"
        return "better" if (self.estimate.mean > 0) == HIGHER_IS_BETTER[self.metric] else "worse"


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


def compare(
    family: Sequence[tuple[Scores, str, str]],
    baseline: str,
    alpha: float = 0.05,
    declared: int = 0,
    baselines: Mapping[tuple[str, str], Scores] | None = None,
) -> list[Comparison]:
    """All pairs of a family, in which Holm's method keeps the error rate.

    Args:
        family: scores of one metric and of two arms, which are to be compared. Scores of further arms would change
            which classes count; see :func:`case_scores`.
        baseline: the arm whose runs show the noise; the pair's second where it has no scores.
        alpha: family-wise error rate.
        declared: size of the family, if some of its comparisons cannot be made yet: these count as p = 1, so that a
            look before the end is not easier to pass.
        baselines: scores of the baseline, by dataset and labels, for pairs without it.
    """
    pairs = []
    for score, first, second in family:
        differences = [a - b for a, b in zip(score.of(first), score.of(second), strict=True)]
        by_case = np.concatenate(differences, axis=1).mean(axis=0)
        of_baseline = score if baseline in score.arms else (baselines or {}).get((score.dataset, score.labels), score)
        noisy = of_baseline.run_means(baseline if baseline in of_baseline.arms else second)
        drawn = crossed_bootstrap(differences, BOOTSTRAP_DRAWS)
        low, high = (float(limit) for limit in np.quantile(drawn, [0.025, 0.975]))
        pairs.append((score, first, second, estimate(differences), by_case, noisy, (low, high)))
    if not pairs:
        return []
    declared = max(declared, len(pairs))
    others = [1.0] * (declared - len(pairs))
    adjusted = holm([*(entry[3].p for entry in pairs), *others])
    of_ranks = [wilcoxon_p(entry[4]) for entry in pairs]
    adjusted_ranks = holm([*of_ranks, *others])
    return [
        Comparison(
            first,
            second,
            score.dataset,
            score.labels,
            score.metric,
            error,
            relative_change(score.of(first), score.of(second)),
            bootstrap,
            of_ranks[index],
            adjusted[index],
            adjusted_ranks[index],
            rank_biserial(by_case),
            float(noisy.std(ddof=1)) if len(noisy) > 1 else float("nan"),
            # Holm's first step is the strictest: what is shown there is shown in the family.
            runs_needed(error, 1 - alpha / declared),
            declared,
            alpha,
        )
        for index, (score, first, second, error, by_case, noisy, bootstrap) in enumerate(pairs)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family."""
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise BenchmarkError(f"statsmodels is not installed: {INSTALL_BENCHMARK}") from error
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def smallest_wilcoxon_p(cases: int, family: int = 1) -> float:
    """The smallest p that the Wilcoxon test can give for so many cases, at the strictest step of Holm's method.

    All differences have the same sign then: 2 of the 2**cases assignments of signs are as extreme.
    """
    return min(1.0, family * 2.0 ** (1 - cases))


def mean_ranks(score: Scores, draws: int = BOOTSTRAP_DRAWS) -> dict[str, tuple[float, float, float]]:
    """Mean rank of each arm over runs and cases, 1 being best, with a bootstrap interval (95 %)."""
    sign = -1 if HIGHER_IS_BETTER[score.metric] else 1
    ranks = [stats.rankdata(sign * fold, axis=0).transpose(1, 2, 0) for fold in score.folds]
    drawn = crossed_bootstrap(ranks, draws)
    means = np.concatenate([fold.reshape(-1, len(score.arms)) for fold in ranks]).mean(axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {arm: (float(means[i]), float(low[i]), float(high[i])) for i, arm in enumerate(score.arms)}


def sentence(comparison: Comparison) -> str:
    """The verdict as a sentence."""
    error = comparison.estimate
    low, high = error.interval()
    where = f"{comparison.dataset}, {comparison.labels} labels"
    subject = f"{comparison.first} against {comparison.second} on {where}"
    size = f"{comparison.metric} {error.mean:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
    tests = f"p = {comparison.p:.2g} over runs and cases, {comparison.wilcoxon_adjusted:.2g} Wilcoxon, both after Holm"
    if comparison.verdict != "not shown":
        return f"{subject}: {comparison.verdict} ({size}; {tests})."
    if error.clusters < FEWEST_CLUSTERS:
        return (
            f"{subject}: not shown ({error.runs} run(s) of each arm; {comparison.metric} {error.mean:+.4f}). How much "
            "runs differ cannot be seen in fewer than 3 on a test split, or in fewer than 3 folds (or seeds, where all "
            "folds of a seed begin with one encoder)."
        )
    if error.mean == 0:
        more = "The arms do not differ at all."
    elif max(comparison.p, comparison.wilcoxon_adjusted) < comparison.alpha:
        more = (
            f"Mean and ranks contradict each other (rank-biserial correlation {comparison.effect:+.2f}): few cases "
            "make the mean, most differ the other way round. Look at the cases."
        )
    elif smallest_wilcoxon_p(error.cases, comparison.family) >= comparison.alpha:
        family = f" in a family of {comparison.family} comparisons" if comparison.family > 1 else ""
        more = f"The Wilcoxon test cannot reach p < {comparison.alpha:g} with {error.cases} test cases{family}."
    elif comparison.needed is None:
        more = "No number of runs would show a difference of this size, since cases differ too much: test more cases."
    else:
        missing = comparison.needed - error.runs
        more = (
            f"A difference of this size would take {comparison.needed} runs of each arm, {missing} more (power 80 %)."
            if missing > 0
            else "With so many runs the power is 80 % for a difference of this size: other seeds may show it."
        )
    return f"{subject}: not shown ({size}; {tests}). {more}"


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
    """nnU-Net's foreground mean of each cell: the mean of :func:`summary_means` over the classes."""
    keys: list[str] = ["cell", "arm", "dataset", "labels", "seed", "fold", "metric"]
    return summary_means(rows).groupby(keys, observed=True)["value"].mean().reset_index()
