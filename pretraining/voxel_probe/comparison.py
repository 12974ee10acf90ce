"""The difference between two arms of the voxel probe, with an interval that covers other encoders and other cases."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple

import numpy as np

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.statistics import estimate, independent_groups
from pretraining.markdown import markdown_table
from pretraining.voxel_probe.results import Row, case_means, on_own_splits, rows_by_task, splits_by_task

INTERVAL = "difference [95 % over seeds and cases]"
HEADER = ["fitted on", "tested on", "labelled", "metric", "cases", INTERVAL, "p", "of each seed"]
METRICS = ("dice", "auc")
# The labelled cases of each split, by dataset and number of labelled cases.
LabelledCases = Mapping[tuple[str, int], Mapping[int, Hashable]]


def labelled_sets(rows: Iterable[Row], cases_of: Callable[[str, int], Sequence[str] | None]) -> LabelledCases:
    """The cases that rows were fitted on, where they are known.

    Args:
        rows: of the probe's table.
        cases_of: the names of the labelled cases of a dataset and split, in the order in which they are drawn.
    """
    found: dict[tuple[str, int], dict[int, frozenset[str]]] = {}
    for number, count, split in {(row.key.dataset, row.key.labelled, row.key.split) for row in rows}:
        if (cases := cases_of(number, split)) is not None:
            found.setdefault((number, count), {})[split] = frozenset(cases[:count])
    return found


def seed_differences(rows: Sequence[Row], first: str, second: str, metric: str) -> dict[int, np.ndarray]:
    """First arm minus second in one task, by seed; an array (cases,) in the order of the cases' names.

    Encoders with the same seed are compared with each other; seeds that only one arm has are left out. So are cases
    without a value in every encoder, such as cases that do not show any class.
    """
    arms = [case_means([row for row in rows if row.key.arm == arm], metric) for arm in (first, second)]
    of_arm = [{seed for by_seed in values.values() for seed in by_seed} for values in arms]
    seeds = sorted(set.intersection(*of_arm))
    cases = sorted(set(arms[0]) & set(arms[1]))
    cases = [case for case in cases if all(set(seeds) <= set(values[case]) for values in arms)]
    return {seed: np.array([arms[0][case][seed] - arms[1][case][seed] for case in cases]) for seed in seeds if cases}


def independent_runs(differences: Mapping[int, np.ndarray], labelled: Mapping[int, Hashable]) -> np.ndarray:
    """Differences of :func:`seed_differences` as an array (runs, cases); seeds with equal labelled cases are one run.

    Args:
        differences: by seed, at least one.
        labelled: the labelled cases of each seed; a seed that is not in it counts as a run of its own.
    """
    groups = independent_groups({seed: labelled.get(seed, seed) for seed in differences})
    return np.stack([np.mean([differences[seed] for seed in group], axis=0) for group in groups])


def compare_arms(rows: Sequence[Row], first: str, second: str, labelled: LabelledCases | None = None) -> str:
    """A Markdown table: first arm minus second for each dataset, number of labelled cases and metric.

    The column `cases` has the number of cases that all encoders of both arms have a value for.

    Encoders and cases are crossed random effects (:func:`nnunetv2_swinfuse.statistics.estimate`), so the interval
    covers the variation between seeds and between cases; with one seed there is none. Several splits are pooled, see
    :func:`pretraining.voxel_probe.results.on_own_splits`; those with the same labelled cases are one run. Where a
    task has a single split, features without an encoder are compared with every encoder.

    Args:
        rows: of the probe's table.
        first, second: names of the arms.
        labelled: of the splits in the rows; where it is not known, splits count as different.

    Raises:
        InputError: when no seed of the two was measured on the same cases.
    """
    lines = []
    of_both = [row for row in rows if row.key.arm in (first, second)]
    splits = splits_by_task(of_both)
    compared = on_own_splits(of_both, for_every_seed=True)
    for task, of_task in sorted(rows_by_task(compared).items(), key=lambda item: astuple(item[0])):
        sets = (labelled or {}).get((task.dataset, task.labelled), {}) if len(splits[task]) > 1 else {}
        for metric in METRICS:
            differences = seed_differences(of_task, first, second, metric)
            if differences:
                result = estimate([independent_runs(differences, sets)])
                means = ", ".join(f"{values.mean():+.3f}" for values in differences.values())
                cases = str(len(next(iter(differences.values()))))
                p = f"{result.p:.3f}" if result.degrees > 0 else "-"
                task_cells = [task.dataset, task.tested_on, str(task.labelled), metric]
                lines.append([*task_cells, cases, str(result), p, means])
    if not lines:
        present = ", ".join(sorted({f"{row.key.arm} (seed {row.key.seed})" for row in rows})) or "none"
        raise InputError(
            f"--compare {first} {second}: no seed of both was measured on the same cases. Arms with rows: {present}"
        )
    return f"{first} minus {second}\n\n{markdown_table(HEADER, lines)}"
