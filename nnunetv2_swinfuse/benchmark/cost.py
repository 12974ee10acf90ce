"""What each arm costs: parameters, operations, memory, time to train and predict, and, separately, its pretraining."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nnunetv2_swinfuse.benchmark.arms import takes_weights
from nnunetv2_swinfuse.benchmark.cells import Cell

COLUMNS = (
    "arm", "dataset", "parameters, million", "patch", "batch", "GFLOP per patch", "peak memory, GiB",
    "s per iteration", "s per predicted case", "s per cell", "pretraining, s", "runs",
)  # fmt: skip


def cost_table(cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row for each arm and dataset with a finished cell; times are medians over its cells, memory is the most.

    Seconds per predicted case are those of the network's passes. Memory of a CPU is the resident set of the whole
    process, on a GPU what PyTorch allocated. Pretraining is the time of the training steps of the arm's encoder, once.
    """
    rows = []
    for arm, dataset in dict.fromkeys(cell.kind for cell in cells):
        known = [results[cell.name] for cell in cells if cell.kind == (arm, dataset) and cell.name in results]
        if not known:
            continue
        costs = [result["cost"] for result in known]
        first = costs[0]
        encoder = (known[0].get("encoder") or {}) if takes_weights(known[0]["arm"]["trainer"]) else {}
        rows.append(
            (
                arm,
                dataset,
                first["parameters"] / 1e6,
                " x ".join(map(str, first["patch_size"])),
                first["batch_size"],
                first["flops_per_patch"] / 1e9,
                max(cost["peak_memory_bytes"] for cost in costs) / 2**30,
                statistics.median(cost["seconds_per_iteration"] for cost in costs),
                statistics.median(cost["inference_seconds_per_case"] for cost in costs),
                statistics.median(result["seconds"] for result in known),
                encoder.get("seconds"),
                len(known),
            )
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))
