"""Differences between two arms: how large, how certain, and how many runs it would take to show them.

The unit is the case; cases are clustered by training run, and the runs of a fold share their test cases. A difference
d[run, case] is therefore modelled with two crossed random effects,

    d[run, case] = mean + run effect + case effect + rest,

so that its interval covers the variation between runs *and* between cases. Pure functions of arrays: the benchmark
makes them from its per-case table, the voxel probe from its rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

POWER = 0.8
MAX_RUNS = 1000
# Share of a mean square that another one, which is 0, may have by rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean difference and its error.

    Attributes:
        mean: over cases and runs.
        variance: variance of the mean.
        degrees: degrees of freedom of that variance (Satterthwaite); 0 with a single run of a single fold, or a single
            case, which say nothing about others.
        run, case, rest: variance components, never below 0.
        runs, cases, folds: how many; a run is one training of each arm in each fold.
    """

    mean: float
    variance: float
    degrees: float
    run: float
    case: float
    rest: float
    runs: int
    cases: int
    folds: int = 1

    @property
    def clusters(self) -> int:
        """How many independent differences between runs the error rests on."""
        return self.folds * (self.runs - 1) if self.runs > 1 else self.folds - 1

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval by Student's t distribution; infinite with one run of one fold, and with one case."""
        half = self.half_width(level)
        return self.mean - half, self.mean + half

    def half_width(self, level: float) -> float:
        if self.degrees <= 0:
            return float("inf")
        return float(stats.t.ppf((1 + level) / 2, self.degrees)) * self.variance**0.5

    def __str__(self) -> str:
        """The mean with its 95 % interval, if there is one: `+0.027 [+0.007, +0.047]`."""
        low, high = self.interval()
        return f"{self.mean:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else "")

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference; 1 with one run of one fold, and with one case."""
        if self.degrees <= 0 or self.mean == 0:
            return 1.0
        if self.variance == 0:
            return 0.0
        return float(2 * stats.t.sf(abs(self.mean) / self.variance**0.5, self.degrees))


def independent_groups(labelled: Mapping[int, Hashable]) -> list[list[int]]:
    """Seeds by what their runs were trained on: seeds with the same labelled cases are no independent runs.

    What such a labelled set is worth is in all of them, so :func:`estimate` would take the variation between sets for
    smaller than it is. Their mean over the group is one run. Where all seeds have the same cases, such as all that
    there are, these are no draw, and every seed is a run of its own.

    Args:
        labelled: the labelled cases of each seed.
    """
    groups: dict[Hashable, list[int]] = {}
    for seed, cases in labelled.items():
        groups.setdefault(cases, []).append(seed)
    return list(groups.values()) if len(groups) > 1 else [[seed] for seed in labelled]


def estimate(folds: Sequence[np.ndarray]) -> Estimate:
    """Mean difference with the variance of a mean over crossed runs and cases.

    Mean squares of the two-way layout give the variance, (MS_run + MS_case - MS_rest) / (runs * cases) in a fold, and
    Satterthwaite's formula its degrees of freedom. Where runs differ by less than the rest does (MS_run <= MS_rest),
    there is no run effect to be seen: the variance is MS_case / (runs * cases), with cases - 1 degrees; or, where the
    means of all cases agree, MS_rest / (runs * cases), with (runs - 1) (cases - 1) degrees. Folds have
    other cases and other trainings, so their means are independent; with one run of each the folds are the clusters.

    Args:
        folds: differences (runs, cases) of each fold; all folds have the same number of runs.

    Raises:
        ValueError: for differences that are not finite, or folds with different numbers of runs.
    """
    folds = [np.asarray(fold, dtype=float) for fold in folds]
    if not folds or any(fold.ndim != 2 or not fold.size or not np.isfinite(fold).all() for fold in folds):
        raise ValueError("expected finite differences (runs, cases) of at least one fold")
    if len({len(fold) for fold in folds}) != 1:
        raise ValueError(f"folds with {[len(fold) for fold in folds]} runs; expected the same number in each")
    runs, cases = len(folds[0]), sum(fold.shape[1] for fold in folds)
    weights = [fold.shape[1] / cases for fold in folds]
    mean = float(sum(weight * fold.mean() for weight, fold in zip(weights, folds, strict=True)))
    if runs == 1:
        return _estimate_of_folds(folds, weights, mean, cases)
    variance = uncertainty = run = case = rest = 0.0
    for weight, fold in zip(weights, folds, strict=True):
        (run_square, _), (case_square, _), (rest_square, _) = components = _mean_squares(fold)
        if run_square > rest_square:
            square = max(run_square + case_square - rest_square, run_square)
            error = sum(part**2 / degrees for part, degrees in components)
            run += weight * (run_square - rest_square) / fold.shape[1]
        else:
            # Where the means of all cases agree but for rounding, MS_case knows nothing of how much differences vary.
            agree = case_square <= ROUNDING * rest_square
            square, degrees_of_square = components[2] if agree else components[1]
            error = square**2 / degrees_of_square
        variance += weight**2 * square / fold.size
        uncertainty += (weight**2 / fold.size) ** 2 * error
        case += weight * max(case_square - rest_square, 0.0) / runs
        rest += weight * rest_square
    if variance <= (1e-9 * abs(mean)) ** 2:
        # The same difference in every run and case, but for rounding.
        return Estimate(mean, 0.0, runs - 1.0 if cases > 1 else 0.0, 0.0, 0.0, 0.0, runs, cases, len(folds))
    degrees = variance**2 / uncertainty if cases > 1 else 0.0
    return Estimate(mean, variance, degrees, run, case, rest, runs, cases, len(folds))


def relative_change(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Estimate | None:
    """The mean of the first divided by that of the second, minus 1, with its error; None where that mean is 0.

    Delta method: the error of a ratio r of means is that of the mean of `first - r * second`, divided by the mean of
    the second. Dividing the interval of the difference instead would treat the second mean as known.

    Args:
        first, second: values (runs, cases) of each fold, paired.
    """
    means = [float(np.concatenate(folds, axis=1).mean()) for folds in (first, second)]
    if means[1] == 0:
        return None
    ratio = means[0] / means[1]
    error = estimate([(a - ratio * b) / means[1] for a, b in zip(first, second, strict=True)])
    return replace(error, mean=ratio - 1)


def _mean_squares(fold: np.ndarray) -> list[tuple[float, int]]:
    """(mean square, degrees of freedom) of runs, cases and the rest; a fold of one case has no case effect."""
    runs, cases = fold.shape
    by_run, by_case, mean = fold.mean(1, keepdims=True), fold.mean(0, keepdims=True), fold.mean()
    run_square = cases * float(((by_run - mean) ** 2).sum()) / (runs - 1)
    if cases == 1:
        return [(run_square, runs - 1), (0.0, 1), (0.0, 1)]
    case_square = runs * float(((by_case - mean) ** 2).sum()) / (cases - 1)
    degrees = (runs - 1) * (cases - 1)
    rest_square = float(((fold - by_run - by_case + mean) ** 2).sum()) / degrees
    return [(run_square, runs - 1), (case_square, cases - 1), (rest_square, degrees)]


def _estimate_of_folds(folds: Sequence[np.ndarray], weights: Sequence[float], mean: float, cases: int) -> Estimate:
    """One run: folds are the clusters; a single fold says nothing about other runs."""
    count = len(folds)
    within = float(np.mean([fold.var(ddof=1) if fold.size > 1 else 0.0 for fold in folds]))
    if count == 1:
        return Estimate(mean, within / cases, 0.0, 0.0, within, 0.0, 1, cases)
    means = np.array([fold.mean() for fold in folds])
    between = float(sum(weight**2 * (value - mean) ** 2 for weight, value in zip(weights, means, strict=True)))
    variance = between * count / (count - 1)
    run = max(float(means.var(ddof=1)) - within * count / cases, 0.0)
    return Estimate(mean, variance, count - 1.0, run, within, 0.0, 1, cases, count)


def runs_needed(difference: Estimate, level: float = 0.95, power: float = POWER) -> int | None:
    """How many runs of each arm would show a difference as large as the observed one, with this power.

    For the same number of test cases; None where no number of runs is enough, because the cases differ too much.
    """
    if difference.mean == 0:
        return None
    # Two runs on one test split differ once, which says too little of how much runs differ.
    for runs in range(3 if difference.folds == 1 else 2, MAX_RUNS + 1):
        by_run = (difference.run / difference.folds + difference.rest / difference.cases) / runs
        by_case = difference.case / difference.cases
        total = by_run + by_case
        if total == 0:
            return runs
        degrees = total**2 / (by_run**2 / (difference.folds * (runs - 1)) + by_case**2 / max(difference.cases - 1, 1))
        needed = stats.t.ppf((1 + level) / 2, degrees) + stats.t.ppf(power, degrees)
        if abs(difference.mean) >= needed * total**0.5:
            return runs
    return None


def crossed_bootstrap(folds: Sequence[np.ndarray], draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of resampled differences: runs and cases are drawn independently, with replacement, fold by fold.

    The distribution that a percentile interval is read from. With three runs such an interval is too short
    (docs/benchmark.md has its measured coverage), which is why verdicts rest on :func:`estimate`.

    Args:
        folds: values (runs, cases) of each fold; a further last axis is kept.
        draws: number of resamples.
        seed: seed of the draws.

    Returns:
        (draws,), or (draws, last axis).
    """
    generator = np.random.default_rng(seed)
    total: np.ndarray = np.zeros(())
    cases = sum(fold.shape[1] for fold in folds)
    for fold in folds:
        runs, count = fold.shape[:2]
        run_weights = generator.multinomial(runs, np.full(runs, 1 / runs), draws) / runs
        case_weights = generator.multinomial(count, np.full(count, 1 / count), draws) / cases
        total = total + np.einsum("dr,rc...,dc->d...", run_weights, fold, case_weights, optimize=True)
    return total


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided paired Wilcoxon signed-rank test of differences (cases,), zeros by Pratt's method.

    Pratt: zeros take part in the ranking and are left out of the sum, so that ties count against a difference.
    """
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def rank_biserial(differences: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation (Kerby 2014) of differences (cases,), from -1 to 1.

    It is the share of ranks in favour minus the share against.

    Zeros are left out; 0 when there is nothing else.
    """
    changed = differences[differences != 0]
    if not len(changed):
        return 0.0
    ranks = stats.rankdata(np.abs(changed))
    return float((ranks * np.sign(changed)).sum() / ranks.sum())


def critical_difference(arms: int, blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of mean ranks (Demsar 2006, equation for CD).

    Args:
        arms: number of arms that are ranked.
        blocks: number of rankings, one for each case.
        alpha: family-wise error rate.
    """
    q = stats.studentized_range.ppf(1 - alpha, arms, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(arms * (arms + 1) / (6 * blocks)))
