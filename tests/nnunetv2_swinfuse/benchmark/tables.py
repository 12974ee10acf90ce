"""Per-case tables with known answers, and what is kept beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from nnunetv2_swinfuse.benchmark.analysis import Analysis, analyse
from nnunetv2_swinfuse.benchmark.cell_run import FINAL
from nnunetv2_swinfuse.benchmark.cells import Cell, Workspace, all_cells
from nnunetv2_swinfuse.benchmark.experiment import Experiment, from_dict
from nnunetv2_swinfuse.benchmark.splits import draw_splits, store_splits
from nnunetv2_swinfuse.benchmark.table import keep, rows_frame

DATASET = "Dataset901_Made"
CLASSES = ("shell", "core")
LENGTH = {"epochs": 1, "iterations": 2, "validation_iterations": 1}
COMMAND = ["swinfuse_benchmark", "made.json"]


def make_experiment(**changes) -> Experiment:
    values = {
        "name": "made",
        "datasets": [901],
        "arms": ["nnunet", "resenc_m"],
        "labels": [3],
        "seeds": [0, 1, 2],
        "test_cases": 10,
        "device": "cpu",
    }
    return from_dict({**values, **changes})


def rows_of(cell: Cell, values: dict[str, np.ndarray], cases: list[str], empty: dict | None = None) -> pd.DataFrame:
    """One metric a key, one value a case, the same for both classes; `empty` by (case, class)."""
    rows = []
    for metric, numbers in values.items():
        for case, value in zip(cases, numbers, strict=True):
            for name in CLASSES:
                missing = (empty or {}).get((case, name), "")
                number = {"both": float("nan"), "missed": 0.0, "invented": 0.0}.get(missing, value)
                rows.append(
                    {
                        "cell": cell.name, "arm": cell.arm, "dataset": cell.dataset, "labels": str(cell.labels),
                        "seed": cell.seed, "fold": cell.fold, "case": case, "class": name, "metric": metric,
                        "value": number, "empty": missing,
                    }
                )  # fmt: skip
    return rows_frame(rows)


def result_of(cell: Cell, **changes) -> dict:
    """As `cell_run.describe` makes it."""
    values = {
        "cell": {"arm": cell.arm, "dataset": cell.dataset, "labels": cell.labels, "seed": cell.seed, "fold": cell.fold},
        "arm": {"name": cell.arm, "trainer": "nnUNetTrainer"},
        "plans_sha256": "p" * 64,
        "split_sha256": f"{cell.seed}{cell.fold}" + "s" * 62,
        "training_sha256": "t" * 64,
        "labels_sha256": "l" * 64,
        "images_sha256": "i" * 64,
        "checkpoint": FINAL,
        "mirroring": True,
        "tolerance_mm": 1.0,
        "length": LENGTH,
        "settings": {},
        "encoder": None,
        "versions": {"nnunetv2": "2.8.1", "torch": "2.8", "nnunetv2-swinfuse": "0.1.0"},
        "machine": "here",
        "device": "cpu",
        "seconds": 60.0,
        "cost": {
            "parameters": 2_000_000, "flops_per_patch": 3e9, "patch_size": [16, 16, 16], "batch_size": 2,
            "seconds_per_iteration": 0.5, "peak_memory_bytes": 2**30, "inference_seconds_per_case": 0.25,
        },
        "curve": {"train_losses": [0.5, 0.2], "val_losses": [0.4, 0.3], "mean_fg_dice": [0.5, 0.7]},
        "foreground_mean": 0.8,
    }  # fmt: skip
    return {**values, **changes}


def fill(experiment: Experiment, root: Path, values, changes=None, skip=(), empty=None) -> tuple[Workspace, list[Cell]]:
    """Keeps made results of all cells but those in `skip`.

    Args:
        values: function of (cell, cases) that gives the Dice of each case.
        changes: function of a cell that gives changes of its result.
        empty: function of a cell that gives missing classes by (case, class).
    """
    workspace = Workspace(root, root / "results")
    names = [f"case_{index:03d}" for index in range(30)]
    splits = draw_splits(experiment, DATASET, names)
    store_splits(workspace.results, {DATASET: splits})
    cells = all_cells(experiment, [DATASET])
    finished = {}
    for cell in cells:
        if cell.name in skip:
            continue
        cases = list(splits[f"{cell.labels}_labels__seed_{cell.seed}__fold_{cell.fold}"].test)
        dice = values(cell, cases)
        table = rows_of(
            cell,
            {"Dice": dice, "HD95": 10 * (1 - dice), "SurfaceDice": dice, "VolumeError": 1 - dice},
            cases,
            empty(cell) if empty else None,
        )
        finished[cell.name] = (result_of(cell, **(changes(cell) if changes else {})), table)
    keep(workspace.results, finished)
    return workspace, cells


def noisy(cell: Cell, cases: list[str], shift: float = 0.0, run: float = 0.01, rest: float = 0.01) -> np.ndarray:
    """Cases that differ by much, runs and the rest by little; `shift` for other arms than nnunet."""
    by_case = 0.7 + 0.1 * np.random.default_rng(0).standard_normal(len(cases))
    generator = np.random.default_rng([cell.seed, cell.fold, len(cell.arm)])
    noise = run * generator.standard_normal() + rest * generator.standard_normal(len(cases))
    return by_case + noise + (shift if cell.arm != "nnunet" else 0.0)


def read_json(path: Path):
    return json.loads(path.read_text())


def analysed(
    tmp_path: Path, values=None, experiment: Experiment | None = None, **options
) -> tuple[Experiment, Workspace, Analysis]:
    """By default of two arms, of which the second is better by 0.1."""
    experiment = experiment or make_experiment()
    workspace, cells = fill(experiment, tmp_path, values or (lambda cell, cases: noisy(cell, cases, 0.1)), **options)
    return experiment, workspace, analyse(experiment, workspace, cells, COMMAND)
