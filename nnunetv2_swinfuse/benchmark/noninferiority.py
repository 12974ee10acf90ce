"""Whether an arm loses no more than a margin against another: tests of non-inferiority, declared before the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from nnunetv2_swinfuse.benchmark.comparison import FEWEST_CLUSTERS, TOO_FEW, holm
from nnunetv2_swinfuse.benchmark.scores import Scores
from nnunetv2_swinfuse.statistics import Estimate, estimate


@dataclass(frozen=True)
class NonInferiority:
    """One test, of Dice: the first arm loses less than the margin against the second.

    Attributes:
        estimate: of the difference, first minus second.
        margin: above 0.
        p: of a loss as large as the margin, after Holm over the declared tests; see :func:`margin_p`.
    """

    first: str
    second: str
    dataset: str
    labels: str
    estimate: Estimate
    margin: float
    p: float
    alpha: float

    @property
    def shown(self) -> bool:
        """Whether a loss as large as the margin is ruled out."""
        return self.estimate.clusters >= FEWEST_CLUSTERS and self.p < self.alpha

    @property
    def sentence(self) -> str:
        """The result in words."""
        low, high = self.estimate.interval()
        claim = f"a loss of {self.margin:g} Dice or more is {'ruled out' if self.shown else 'not ruled out'}"
        where = f"{self.first} against {self.second} on {self.dataset}, {self.labels} labels"
        if self.estimate.clusters < FEWEST_CLUSTERS:
            return (
                f"{where}: {claim} ({self.estimate.runs} run(s) of each arm; Dice {self.estimate.mean:+.4f}). {TOO_FEW}"
            )
        size = f"Dice {self.estimate.mean:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        return f"{where}: {claim} ({size}; p = {self.p:.2g} after Holm)."


def margin_p(difference: Estimate, margin: float) -> float:
    """Twice the one-sided p-value of a difference of `-margin` or less.

    Twice, so that it is below 0.05 where the whole 95 % interval lies above `-margin`. 1 with one run or one case.
    """
    if difference.degrees <= 0:
        return 1.0
    if difference.variance == 0:
        return 0.0 if difference.mean > -margin else 1.0
    return min(1.0, float(2 * stats.t.sf((difference.mean + margin) / difference.variance**0.5, difference.degrees)))


def rule_out_loss(
    family: Sequence[tuple[Scores, str, str]], margin: float, alpha: float, declared: int
) -> list[NonInferiority]:
    """All tests of a family, in which Holm's method keeps the error rate.

    Args:
        family: scores, and the two arms in them to compare.
        margin: the loss to be ruled out, in Dice.
        alpha: family-wise error rate.
        declared: size of the family; tests that cannot be made yet count as p = 1.
    """
    estimates = [
        estimate([a - b for a, b in zip(score.of(first), score.of(second), strict=True)])
        for score, first, second in family
    ]
    p_values = [margin_p(found, margin) for found in estimates]
    adjusted = holm([*p_values, *[1.0] * (declared - len(p_values))]) if p_values else []
    return [
        NonInferiority(first, second, score.dataset, score.labels, found, margin, p, alpha)
        for (score, first, second), found, p in zip(family, estimates, adjusted, strict=False)
    ]
