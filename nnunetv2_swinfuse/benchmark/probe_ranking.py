"""Whether the voxel probe ranks arms as fine-tuning does: `python -m nnunetv2_swinfuse.benchmark.probe_ranking`.

    python -m pretraining.voxel_probe ARM=RUN ... -d 510 511 --labelled 4 --splits RESULTS/splits.json --output p.csv
    python -m nnunetv2_swinfuse.benchmark.probe_ranking p.csv RESULTS --same random=scratch

The first command is given once for each seed, with its encoders and `--split_seed`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from scipy import stats

from nnunetv2_swinfuse.benchmark.splits import FILE
from nnunetv2_swinfuse.benchmark.splits import key as split_key
from nnunetv2_swinfuse.benchmark.table import read_rows
from nnunetv2_swinfuse.errors import BenchmarkError, InputError, errors_without_traceback
from pretraining.markdown import markdown_table
from pretraining.voxel_probe.datasets import dataset_number
from pretraining.voxel_probe.results import Results, on_own_splits

# Up to this many arms every order is tried; beyond, random ones.
EXACT = 7
ALL: Literal["all"] = "all"
# Dataset and number of labelled cases.
Task = tuple[str, str]
# Seed and case.
Place = tuple[int, str]
# By task, arm and place.
Scores = dict[Task, dict[str, dict[Place, float]]]


@dataclass(frozen=True)
class Ranking:
    """Arms of one dataset and number of labelled cases.

    Attributes:
        dataset, labels: what was learnt.
        arms: mean Dice of the probe and of fine-tuning over seeds and cases, by arm, the best of fine-tuning first.
        places: number of seeds and cases that the means are over.
        rho: Spearman's correlation of the two orders; NaN where all arms of one side are equal.
        p: probability of such a correlation or a stronger one, of either sign, if the orders were unrelated.
    """

    dataset: str
    labels: str
    arms: Mapping[str, tuple[float, float]]
    places: int
    rho: float
    p: float


def rank(probe: Scores, fine_tuned: Scores) -> list[Ranking]:
    """Compares the orders of the arms that both have, for each dataset and number of labels that both have.

    The means are over the seeds and cases that all of these arms have on both sides.

    Args:
        probe, fine_tuned: Dice by task, arm, and seed and case.

    Raises:
        BenchmarkError: when there is no task with three arms in common, or these share no seed and case.
    """
    rankings = []
    for task in sorted(probe.keys() & fine_tuned.keys()):
        sides = probe[task], fine_tuned[task]
        names = sorted(sides[0].keys() & sides[1].keys())
        if len(names) < 3:
            continue
        common = set.intersection(*(set(side[name]) for side in sides for name in names))
        if not common:
            raise BenchmarkError(
                f"dataset {task[0]}, {task[1]} labels: no seed and case that {', '.join(names)} have in the probe "
                "and in fine-tuning; give the probe the experiment's cases with --splits and encoders of the same seeds"
            )
        arms = {
            name: (fmean(sides[0][name][place] for place in common), fmean(sides[1][name][place] for place in common))
            for name in names
        }
        names.sort(key=lambda name: -arms[name][1])
        rho, p = correlation(*([arms[name][side] for name in names] for side in (0, 1)))
        rankings.append(Ranking(*task, {name: arms[name] for name in names}, len(common), rho, p))
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


def probe_scores(path: Path, same: Mapping[str, str]) -> Scores:
    """Dice of the probe, a mean over the classes, by task, arm, and seed and case; see :func:`on_own_splits`.

    Args:
        path: table of `python -m pretraining.voxel_probe`.
        same: names of arms in fine-tuning, by that in the probe where they differ.

    Raises:
        InputError: for a missing table, or one whose arms get the same name.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table; make it with python -m pretraining.voxel_probe ... --output {path}")
    by_place: dict[tuple[str, str, str, int, str], list[float]] = defaultdict(list)
    within = [row for row in Results(path).rows if row.metric == "dice" and row.key.dataset == row.key.tested_on]
    rows = on_own_splits(within)
    arms = {row.key.arm for row in rows}
    taken = [name for name in arms if name in same.values() and same.get(name, name) == name]
    if taken or len(set(same.values())) < len(same):
        raise InputError(f"--same: two arms of {path} would be called {taken[0] if taken else 'the same'}")
    for row in rows:
        key = row.key
        by_place[key.dataset, str(key.labelled), same.get(key.arm, key.arm), key.seed, row.case].append(row.value)
    return _by_task({place: fmean(values) for place, values in by_place.items()})


def fine_tuned_scores(results: Path) -> Scores:
    """Dice of an experiment, a mean over the classes, by task, arm, and seed and case; the dataset is its number.

    Labels `all` become the number of training cases of fold 0, as the probe counts them.

    Raises:
        BenchmarkError: when no cell is finished, or `splits.json` lacks a split.
    """
    table = read_rows(results)
    table = table[(table["metric"] == "Dice") & table["value"].notna()]
    if table.empty:
        raise BenchmarkError(f"{results}: no finished cell; expected the results folder of swinfuse_benchmark")
    labels = table["labels"].copy()
    for (dataset, seed), rows in table[labels == ALL].groupby(["dataset", "seed"]):
        labels[rows.index] = _training_cases(results / FILE, dataset, seed)
    table = table.assign(dataset=table["dataset"].map(dataset_number), labels=labels)
    means = table.groupby(["dataset", "labels", "arm", "seed", "case"])["value"].mean()
    return _by_task({(str(d), str(n), str(arm), int(seed), str(case)): float(value)
                     for (d, n, arm, seed, case), value in means.items()})  # fmt: skip


def _training_cases(path: Path, dataset: str, seed: int) -> str:
    try:
        return str(len(json.loads(path.read_text())[dataset][split_key(ALL, seed, 0)]["train"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path}: no split of {dataset}, all labels, seed {seed}, fold 0 ({type(error).__name__}: {error}); "
            "expected the splits of the table beside it"
        ) from error


def _by_task(values: Mapping[tuple[str, str, str, int, str], float]) -> Scores:
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    for (dataset, labels, arm, seed, case), value in values.items():
        scores[dataset, labels][arm][seed, case] = value
    return scores


def format_rankings(rankings: Sequence[Ranking]) -> str:
    """A table of the arms and one of the correlations, in Markdown."""
    arms = [
        [ranking.dataset, ranking.labels, arm, *values] for ranking in rankings for arm, values in ranking.arms.items()
    ]
    orders = [[r.dataset, r.labels, len(r.arms), r.places, r.rho, r.p] for r in rankings]
    return "\n\n".join(
        [
            markdown_table(["dataset", "labels", "arm", "probe, Dice", "fine-tuning, Dice"], arms),
            markdown_table(["dataset", "labels", "arms", "seeds and cases", "Spearman's rho", "p"], orders),
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
        "--same",
        nargs="+",
        action="extend",
        default=[],
        metavar="PROBE=FINE_TUNED",
        help="arms with different names, random=scratch",
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
        rankings = rank(probe_scores(options.probe, same), fine_tuned_scores(options.results))
        print(format_rankings(rankings))


if __name__ == "__main__":
    main()
