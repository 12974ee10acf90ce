"""How often intervals of a difference hold the true one: the benchmark's own, and a percentile bootstrap.

    python benchmarks/coverage.py [--trials 20000]

Simulates differences between two arms, difference[run, case] = run + case + rest, with a true mean of 0 and known
standard deviations; cases and the rest are drawn from Student's t with 5 degrees of freedom, as Dice has tails. Counts
how many 95 % intervals hold 0. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse

import numpy as np

from nnunetv2_swinfuse.statistics import crossed_bootstrap, estimate

SIZES = ((3, 40), (2, 40), (5, 40), (3, 10), (3, 100))
# Standard deviations of Dice differences: of runs, of cases, of the rest.
COMPONENTS = (
    (0.02, 0.01, 0.01),
    (0.01, 0.02, 0.03),
    (0.005, 0.03, 0.03),
    (0.002, 0.03, 0.05),
    (0.0, 0.03, 0.03),
    (0.0, 0.0, 0.03),
    # Where runs differ by about as much as the rest, in the mean of 40 cases: the shortest intervals.
    (0.015, 0.02, 0.03),
    (0.01, 0.0, 0.03),
    # Measured (docs/results/2026-11-28-hippocampus-few-labels-cpu): swinfuse minus scratch, swinfuse minus nnunet.
    (0.009, 0.012, 0.030),
    (0.104, 0.042, 0.064),
)


def coverage(runs: int, cases: int, components: tuple[float, float, float], trials: int, seed: int) -> list[float]:
    """Shares of the intervals that hold the true difference: of `estimate`, and of the percentile bootstrap."""
    generator = np.random.default_rng(seed)
    run, case, rest = components
    ours = bootstrap = 0
    # A bootstrap takes a hundred times as long.
    few = max(trials // 20, 1)
    for trial in range(trials):
        tails = [generator.standard_t(5, shape) / (5 / 3) ** 0.5 for shape in ((1, cases), (runs, cases))]
        differences = run * generator.standard_normal((runs, 1)) + case * tails[0] + rest * tails[1]
        low, high = estimate([differences]).interval()
        ours += low <= 0 <= high
        if trial < few:
            low, high = np.quantile(crossed_bootstrap([differences], 1000, trial), [0.025, 0.975])
            bootstrap += low <= 0 <= high
    return [ours / trials, bootstrap / few]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20_000)
    trials = parser.parse_args().trials
    print("| runs | cases | sd of runs | of cases | of the rest | interval | percentile bootstrap |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for runs, cases in SIZES:
        for components in COMPONENTS:
            ours, bootstrap = coverage(runs, cases, components, trials, seed=0)
            sizes = " | ".join(f"{value:g}" for value in components)
            print(f"| {runs} | {cases} | {sizes} | {ours:.3f} | {bootstrap:.3f} |", flush=True)


if __name__ == "__main__":
    main()
