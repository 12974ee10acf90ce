"""Whether the voxel probe ranks arms as fine-tuning does: `python -m nnunetv2_swinfuse.benchmark.probe_ranking`.

python -m pretraining.voxel_probe ARM=RUN ... -d 510 511 --splits RESULTS/splits.json --split_seed 0 --output probe.csv
python -m nnunetv2_swinfuse.benchmark.probe_ranking probe.csv RESULTS --same random=scratch
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import stats

from nnunetv2_swinfuse.benchmark.table import read_rows
from nnunetv2_swinfuse.errors import BenchmarkError, InputError, errors_without_traceback
from pretraining.markdown import markdown_table
from pretraining.voxel_probe.results import Results, case_means, rows_by_task

# Up to this many arms every order is tried; beyond, random ones.
EXACT = 7
# Dataset and number of labelled cases.
Task = tuple[str, str]


@dataclass(frozen=True)
class Ranking:
    """Arms of one dataset and number of labelled cases.

    Attributes:
        dataset, labels: what was learnt.
        arms: mean Dice of the probe and of fine-tuning over seeds and cases, by arm, the best of fine-tuning first.
        rho: Spearman's correlation of the two orders; NaN where all arms of one side are equal.
        p: probability of such a correlation or a stronger one, of either sign, if the orders were unrelated.
    """

    dataset: str
    labels: str
    arms: Mapping[str, tuple[float, float]]
    rho: float
    p: float


def rank(probe: Mapping[Task, Mapping[str, float]], fine_tuned: Mapping[Task, Mapping[str, float]]) -> list[Ranking]:
    """Compares the orders of the arms that both have, for each dataset and number of labels that both have.

    Args:
        probe, fine_tuned: mean Dice by task and arm.

    Raises:
        BenchmarkError: when there is no task with three arms in common.
    """
    rankings = []
    for task in sorted(probe.keys() & fine_tuned.keys()):
        first, second = probe[task], fine_tuned[task]
        names = sorted(first.keys() & second.keys(), key=lambda arm: -second[arm])
        if len(names) < 3:
            continue
        values = [first[name] for name in names], [second[name] for name in names]
        arms = {name: (first[name], second[name]) for name in names}
        rankings.append(Ranking(*task, arms, *correlation(*values)))
    if not rankings:
        listings = ["; ".join(f"{d}, {n} labels: {', '.join(sorted(side[d, n]))}" for d, n in sorted(side))
                    for side in (probe, fine_tuned)]  # fmt: skip
        raise BenchmarkError(
            f"no dataset and number of labels with three arms in common. Probe: {listings[0] or 'nothing'}. "
            f"Fine-tuning: {listings[1] or 'nothing'}. Rename arms with --same PROBE=FINE_TUNED"
        )
    return rankings


def correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Spearman's correlation and its p by permutation, exact for up to seven pairs; NaN and 1 for constant values."""
    if len(set(first)) == 1 or len(set(second)) == 1:
        return math.nan, 1.0
    # Spearman's correlation is the mean product of standardised ranks, which permutations leave standardised.
    ranks = [stats.zscore(stats.rankdata(values)) for values in (first, second)]
    result = stats.permutation_test(
        (ranks[0],),
        lambda values, axis: (values * ranks[1]).mean(axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=math.inf if len(first) <= EXACT else 9999,
        rng=np.random.default_rng(0),
    )
    return float(result.statistic), float(result.pvalue)


def probe_means(path: Path, same: Mapping[str, str]) -> dict[Task, dict[str, float]]:
    """Mean Dice over cases, seeds and splits of the probe's arms, by task.

    Args:
        path: table of `python -m pretraining.voxel_probe`.
        same: names of arms in fine-tuning, by that in the probe where they differ.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table; make it with python -m pretraining.voxel_probe ... --output {path}")
    means: dict[Task, dict[str, list[float]]] = {}
    for key, rows in rows_by_task(Results(path).rows).items():
        if key.dataset != key.tested_on:
            continue
        for arm in {row.key.arm for row in rows}:
            values = case_means([row for row in rows if row.key.arm == arm], "dice")
            of_arm = means.setdefault((key.dataset, str(key.labelled)), {}).setdefault(same.get(arm, arm), [])
            of_arm.append(fmean(fmean(by_seed.values()) for by_seed in values.values()))
    return {task: {arm: fmean(values) for arm, values in arms.items()} for task, arms in means.items()}


def fine_tuned_means(results: Path) -> dict[Task, dict[str, float]]:
    """Mean Dice over cases, classes and seeds of an experiment's arms, by task; the dataset is its number."""
    table = read_rows(results)
    table = table[table["metric"] == "Dice"]
    if table.empty:
        raise BenchmarkError(f"{results}: no finished cell; expected the results folder of swinfuse_benchmark")
    means: dict[Task, dict[str, float]] = {}
    for (dataset, labels, arm), rows in table.groupby(["dataset", "labels", "arm"]):
        number = str(dataset).removeprefix("Dataset")[:3]
        means.setdefault((number, str(labels)), {})[str(arm)] = float(rows["value"].mean())
    return means


def format_rankings(rankings: Sequence[Ranking]) -> str:
    """A table of the arms and one of the correlations, in Markdown."""
    arms = [
        [ranking.dataset, ranking.labels, arm, *values] for ranking in rankings for arm, values in ranking.arms.items()
    ]
    orders = [[r.dataset, r.labels, len(r.arms), r.rho, r.p] for r in rankings]
    return "\n\n".join(
        [
            markdown_table(["dataset", "labels", "arm", "probe, Dice", "fine-tuning, Dice"], arms),
            markdown_table(["dataset", "labels", "arms", "Spearman's rho", "p"], orders),
        ]
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nnunetv2_swinfuse.benchmark.probe_ranking",
        description="Compare the order of arms in the voxel probe with that in fine-tuning. Explained in "
        "docs/benchmark.md.",
    )  # fmt: skip
    parser.add_argument("probe", type=Path, metavar="PROBE.csv", help="table of python -m pretraining.voxel_probe")
    parser.add_argument("results", type=Path, help="results folder of swinfuse_benchmark")
    parser.add_argument(
        "--same", nargs="+", default=[], metavar="PROBE=FINE_TUNED", help="arms with different names, random=scratch"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 on bad input."""
    options = build_parser().parse_args(arguments)
    with errors_without_traceback("probe_ranking"):
        pairs = [words.split("=", 1) for words in options.same]
        if wrong := [words for words, pair in zip(options.same, pairs, strict=True) if len(pair) != 2]:
            raise BenchmarkError(f"--same {wrong[0]}: expected PROBE=FINE_TUNED, such as random=scratch")
        same = {pair[0]: pair[1] for pair in pairs}
        rankings = rank(probe_means(options.probe, same), fine_tuned_means(options.results))
        print(format_rankings(rankings))


if __name__ == "__main__":
    main()
