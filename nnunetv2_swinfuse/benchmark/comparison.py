"""Differences between pairs of arms, the declared family, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nnunetv2_swinfuse.benchmark.metrics import HIGHER_IS_BETTER
from nnunetv2_swinfuse.benchmark.scores import Scores
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
# With one difference between runs (two runs on one test split) 95 % intervals were measured to cover 89 %.
FEWEST_CLUSTERS = 2
TOO_FEW = (
    "How much runs differ cannot be seen in fewer than 3 on a test split, or in fewer than 3 folds (or seeds, where "
    "all folds of a seed begin with one encoder). Seeds that drew the same labelled cases are one run."
)


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
        drawn = crossed_bootstrap(differences)
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
            f"{subject}: not shown ({error.runs} run(s) of each arm; {comparison.metric} {error.mean:+.4f}). {TOO_FEW}"
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
