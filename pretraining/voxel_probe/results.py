"""The rows of the voxel probe: a long CSV file that later calls add to, and the table that is printed."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import stats

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.errors import InputError
from pretraining.markdown import markdown_table
from pretraining.voxel_probe.measures import ALL

LEVEL = 0.95
# Arms without an encoder; all their rows have seed 0.
HANDMADE, COORDINATES = WITHOUT_ENCODER = "handmade", "coordinates"


@dataclass(frozen=True)
class Key:
    """What one fitted layer was measured on.

    Attributes:
        arm: whose features.
        seed: seed of the encoder; 0 for features without one.
        dataset: number or name of the dataset that the layer was fitted on.
        tested_on: dataset that it was measured on; another one in the zero-shot probe.
        labelled: number of cases that it was fitted on.
        split: seed of the split.
    """

    arm: str
    seed: int
    dataset: str
    tested_on: str
    labelled: int
    split: int


@dataclass(frozen=True)
class Row:
    """One measure of one case.

    Attributes:
        key: the fitted layer.
        case: a case of `tested_on`.
        label: class, or `all`.
        metric: `dice`, `nll` or `auc`.
        value: value of the measure.
        inputs: digest of encoder, cases, preprocessing and settings; rows with another one cannot be compared.
    """

    key: Key
    case: str
    label: str
    metric: str
    value: float
    inputs: str


COLUMNS = (*(field.name for field in fields(Key)), "case", "class", "metric", "value", "inputs")


class Results:
    """The rows in a file. Written once for each fitted layer, whole, so that an interrupted probe can be resumed.

    One process at a time: rows that another one adds at the same moment may be lost.

    Args:
        path: path of the CSV file; created when rows are added.

    Raises:
        InputError: for a file that is no table of the probe.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows = self._read()

    def done(self, key: Key, inputs: str) -> bool:
        """Whether the rows of a fitted layer exist.

        Raises:
            InputError: when they do, but from other inputs.
        """
        existing = {row.inputs for row in self.rows if row.key == key}
        if existing - {inputs}:
            raise InputError(
                f"{self.path}: the rows of {key.arm} (seed {key.seed}, {key.dataset}, {key.labelled} labelled) are of "
                "another encoder, split or setting. Choose another --output, another name with NAME=PATH, "
                "or compute them again with --overwrite"
            )
        return bool(existing)

    def add(self, rows: Iterable[Row]) -> None:
        """Adds the rows of fitted layers, in place of older ones of the same."""
        new = list(rows)
        keys = {row.key for row in new}
        # Read again: another process may have finished something else in the meantime.
        self.rows = [row for row in self._read() if row.key not in keys] + new
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow([*astuple(row.key), row.case, row.label, row.metric, f"{row.value:.6g}", row.inputs])
        with atomic_write(self.path) as temporary:
            temporary.write_text(text.getvalue())

    def _read(self) -> list[Row]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InputError(
                    f"{self.path}: columns {reader.fieldnames}; expected {', '.join(COLUMNS)}. Choose another --output"
                )
            try:
                return [_row(record) for record in reader]
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{self.path}: a line is damaged ({error}); remove it, or choose another --output"
                ) from error


@dataclass(frozen=True)
class Summary:
    """Mean of an arm over seeds and cases.

    Attributes:
        mean: over the cases, of the mean over seeds and classes.
        interval: confidence interval of the mean for other cases, by Student's t; None with one case.
        seeds: the mean over the cases for each seed, in ascending order.
        difference, difference_interval: the same of the difference to the floor, case by case; None without a floor.
    """

    mean: float
    interval: tuple[float, float] | None
    seeds: tuple[float, ...]
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


def rows_by_task(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """Rows of all arms and seeds by what was fitted and tested on; the keys have an empty arm and seed 0."""
    tasks: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        tasks[replace(row.key, arm="", seed=0)].append(row)
    return tasks


def splits_by_task(rows: Iterable[Row]) -> dict[Key, set[int]]:
    """The splits that a task was measured on; the keys have an empty arm, seed 0 and split 0."""
    splits: dict[Key, set[int]] = defaultdict(set)
    for row in rows:
        splits[replace(row.key, arm="", seed=0, split=0)].add(row.key.split)
    return splits


def on_own_splits(rows: Sequence[Row], for_every_seed: bool = False) -> list[Row]:
    """Rows with split 0, of each encoder those on the split of its own seed where a task has several splits.

    So does an experiment that draws the labelled cases again for each seed. Several splits of one encoder would not be
    independent. Features without an encoder get the seed of each split.

    Args:
        rows: of the probe's table.
        for_every_seed: where a task has a single split, features without an encoder count once for each seed of the
            encoders.
    """
    splits = splits_by_task(rows)
    own = []
    for task, of_task in rows_by_task(rows).items():
        several = len(splits[replace(task, split=0)]) > 1
        encoders = {row.key.seed for row in of_task if row.key.arm not in WITHOUT_ENCODER}
        for row in of_task:
            seeds = {row.key.seed}
            if row.key.arm in WITHOUT_ENCODER:
                seeds = {row.key.split} if several else (for_every_seed and encoders) or seeds
            own += [
                replace(row, key=replace(row.key, seed=seed, split=0))
                for seed in seeds
                if not several or seed == row.key.split
            ]
    return own


def case_means(rows: Iterable[Row], metric: str, label: str | None = None) -> dict[str, dict[int, float]]:
    """Means over the classes of a case, by case and seed; of one class if it is given.

    `nll` is that of all voxels unless a class is given.
    """
    selected = ALL if metric == "nll" and label is None else label
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.metric == metric and (row.label == selected or selected is None):
            values[row.case][row.key.seed].append(row.value)
    return {case: {seed: fmean(seed_values) for seed, seed_values in seeds.items()} for case, seeds in values.items()}


def summarise(values: Mapping[str, Mapping[int, float]], floor: Mapping[str, Mapping[int, float]] | None) -> Summary:
    """Summary of the values of an arm, by case and seed, and of their difference to those of a floor."""
    cases = sorted(values)
    case_values = np.array([fmean(values[case].values()) for case in cases])
    seeds = sorted({seed for by_seed in values.values() for seed in by_seed})
    seed_means = sorted(fmean(values[case][seed] for case in cases if seed in values[case]) for seed in seeds)
    mean, interval = mean_interval(case_values)
    if not floor or set(floor) != set(values):
        return Summary(mean, interval, tuple(seed_means))
    differences = case_values - np.array([fmean(floor[case].values()) for case in cases])
    return Summary(mean, interval, tuple(seed_means), *mean_interval(differences))


def format_table(rows: Sequence[Row], floors: Mapping[str, str], zero_shot: bool) -> str:
    """A Markdown table: one line for each arm, dataset and number of labelled cases.

    Args:
        rows: rows of all arms.
        floors: the arm of random encoders that an arm is compared with, by arm.
        zero_shot: the columns of the zero-shot probe (AUC of each class, Dice) instead of Dice and likelihood.
    """
    groups: dict[tuple[str, str, int, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (row.key.dataset != row.key.tested_on) == zero_shot:
            key = row.key
            groups[key.dataset, key.tested_on, key.labelled, key.split][key.arm].append(row)
    if not groups:
        return ""
    metric, other = ("auc", "dice") if zero_shot else ("dice", "nll")
    header = ["fitted on" if zero_shot else "dataset", "labelled", "arm", f"{metric} [95 % over cases]"]
    header += ["minus random", "seeds", other, f"{metric} of each class"]
    lines = []
    for (dataset, tested_on, labelled, _), arms in groups.items():
        for arm, arm_rows in arms.items():
            values = case_means(arm_rows, metric)
            if not values:
                continue
            floor = case_means(arms[floors[arm]], metric) if floors.get(arm) in arms else None
            summary = summarise(values, floor)
            second = case_means(arm_rows, other)
            labels = list(dict.fromkeys(row.label for row in arm_rows if row.metric == metric))
            classes = [f"{label} {summarise(case_means(arm_rows, metric, label), None).mean:.2f}" for label in labels]
            lines.append(
                [
                    f"{dataset} -> {tested_on}" if zero_shot else dataset, str(labelled), arm,
                    _format(summary.mean, summary.interval),
                    "" if summary.difference is None else _format(
                        summary.difference, summary.difference_interval, "+"
                    ),
                    f"{summary.seeds[0]:.3f} to {summary.seeds[-1]:.3f}" if len(summary.seeds) > 1 else "",
                    f"{summarise(second, None).mean:.4f}" if second else "",
                    ", ".join(classes),
                ]
            )  # fmt: skip
    return markdown_table(header, lines)


def mean_interval(values: np.ndarray) -> tuple[float, tuple[float, float] | None]:
    """Mean of values (n,), and its 95 % interval by Student's t; None for a single value."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, (mean - half, mean + half)


def _format(mean: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    text = f"{mean:{sign}.3f}"
    return text if interval is None else f"{text} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def _row(record: Mapping[str, str]) -> Row:
    key = Key(
        record["arm"], int(record["seed"]), record["dataset"], record["tested_on"], int(record["labelled"]),
        int(record["split"]),
    )  # fmt: skip
    return Row(key, record["case"], record["class"], record["metric"], float(record["value"]), record["inputs"])
