"""The cells of an experiment: one training each, in a folder of its own, and what is known of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunetv2_swinfuse.benchmark.experiment import Experiment, Labels, PretrainingRun

State = Literal["done", "failed", "begun", "waiting"]
# Files of a cell's folder.
RESULT, CASES, FAILURE, SPENT = "result.json", "cases.csv", "failure.json", "seconds.json"
SCRIPT, LOG = "run.sh", "log.txt"


@dataclass(frozen=True)
class Cell:
    """One training: an arm on a split of a dataset."""

    arm: str
    dataset: str
    labels: Labels
    seed: int
    fold: int

    @property
    def name(self) -> str:
        return f"{self.arm}__{self.dataset}__{self.labels}_labels__seed_{self.seed}__fold_{self.fold}"

    @property
    def kind(self) -> tuple[str, str]:
        """Arm and dataset: cells of a kind cost about the same, since all train for as many iterations."""
        return self.arm, self.dataset


@dataclass(frozen=True)
class Workspace:
    """Folders of an experiment.

    Attributes:
        root: holds everything that can be created again: preprocessed data, encoders, models.
        results: what is kept and may be committed: the per-case table, what each cell was, the splits.
    """

    root: Path
    results: Path

    @property
    def preprocessed(self) -> Path:
        """nnU-Net's, shared by the cells."""
        return self.root / "nnUNet_preprocessed"

    @property
    def raw(self) -> Path:
        """nnU-Net's, for datasets that are planned and preprocessed with another reader; see raw_dataset.py."""
        return self.root / "nnUNet_raw"

    def pretraining(self, run: PretrainingRun) -> Path:
        return self.root / "pretraining" / run.name

    def cell(self, cell: Cell) -> Path:
        return self.root / "cells" / cell.name

    def state(self, cell: Cell, kept: Mapping[str, Any]) -> State:
        """`kept` are the results of earlier sessions, by the cell's name."""
        folder = self.cell(cell)
        if cell.name in kept or (folder / RESULT).is_file():
            return "done"
        if (folder / FAILURE).is_file():
            return "failed"
        return "begun" if folder.is_dir() else "waiting"


def all_cells(experiment: Experiment, datasets: Sequence[str]) -> list[Cell]:
    """All combinations in the order of running.

    All runs with a number of labels come before the next number, and a seed of all arms before the next seed, so that
    what is done can be compared.
    """
    return [
        Cell(arm.name, dataset, labels, seed, fold)
        for labels in experiment.labels
        for seed in experiment.seeds
        for dataset in datasets
        for fold in experiment.trained_folds
        for arm in experiment.arms
    ]


def measured_seconds(cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Median duration of the finished cells of each kind, seconds."""
    durations: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        seconds = results.get(cell.name, {}).get("seconds")
        if seconds is not None:
            durations.setdefault(cell.kind, []).append(float(seconds))
    return {kind: statistics.median(values) for kind, values in durations.items()}


def read_results(workspace: Workspace, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """The records of finished cells, by name, from earlier sessions and from the cells' folders.

    A kept record is never replaced: it belongs to the rows that were kept with it, and the folder of another machine
    may hold another training of the cell.
    """
    from nnunetv2_swinfuse.benchmark.table import read_kept

    results = dict(read_kept(workspace.results))
    for cell in cells:
        path = workspace.cell(cell) / RESULT
        if cell.name not in results and path.is_file():
            results[cell.name] = json.loads(path.read_text())
    return results
