import numpy as np

from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.cost import cost_table

from .tables import DATASET, result_of


def test_a_pretraining_is_paid_by_the_arms_that_use_its_weights():
    encoder = {"sha256": "e", "saw": [], "recipe": "swinfuse", "seconds": 77.0}
    trainers = {"scratch": "nnUNetTrainerSwinFUSEScratch", "swinfuse": "nnUNetTrainerSwinFUSE"}
    cells = [Cell(arm, DATASET, 3, 0, 0) for arm in trainers]
    results = {cell.name: result_of(cell, encoder=encoder, arm={"trainer": trainers[cell.arm]}) for cell in cells}
    rows = cost_table(cells, results).set_index("arm")
    assert rows.loc["swinfuse", "parameters, million"] == 2.0
    assert rows.loc["swinfuse", "GFLOP per patch"] == 3.0
    assert rows.loc["swinfuse", "peak memory, GiB"] == 1.0
    assert rows.loc["swinfuse", "pretraining, s"] == 77.0
    assert np.isnan(rows.loc["scratch", "pretraining, s"])


def test_times_are_medians_and_memory_is_the_most():
    cells = [Cell("nnunet", DATASET, 3, seed, 0) for seed in (0, 1, 2)]
    results = {}
    for cell, factor in zip(cells, (1, 10, 2), strict=True):
        result = result_of(cell, seconds=60.0 * factor)
        result["cost"] |= {
            "seconds_per_iteration": 0.5 * factor,
            "inference_seconds_per_case": 0.25 * factor,
            "peak_memory_bytes": factor * 2**30,
        }
        results[cell.name] = result
    (row,) = cost_table([*cells, Cell("resenc_m", DATASET, 3, 0, 0)], results).to_dict("records")
    assert (row["arm"], row["runs"], row["patch"], row["batch"]) == ("nnunet", 3, "16 x 16 x 16", 2)
    assert (row["s per iteration"], row["s per predicted case"], row["s per cell"]) == (1.0, 0.5, 120.0)
    assert row["peak memory, GiB"] == 10.0
    assert row["pretraining, s"] is None or np.isnan(row["pretraining, s"])
