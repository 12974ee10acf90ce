import numpy as np

from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.cost import cost_table

from .tables import DATASET, analysed, result_of


def test_costs(tmp_path):
    encoder = {"sha256": "e", "saw": [], "recipe": "swinfuse", "seconds": 77.0}
    trainers = {"nnunet": "nnUNetTrainerSwinFUSEScratch", "resenc_m": "nnUNetTrainerSwinFUSE"}

    def changes(cell):
        return {"encoder": encoder, "arm": {"trainer": trainers[cell.arm]}}

    _, _, analysis = analysed(tmp_path, changes=changes)
    rows = {row["arm"]: row for row in analysis.to_dict()["cost"]}
    assert rows["resenc_m"]["parameters, million"] == 2.0
    assert rows["resenc_m"]["GFLOP per patch"] == 3.0
    assert rows["resenc_m"]["peak memory, GiB"] == 1.0
    assert rows["resenc_m"]["pretraining, s"] == 77.0
    # The twin from scratch does not pay for weights it does not use.
    assert rows["nnunet"]["pretraining, s"] is None


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
