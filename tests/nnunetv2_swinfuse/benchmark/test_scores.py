import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark.scores import (
    absent_classes,
    case_scores,
    emptiness_counts,
    foreground_means,
    mean_ranks,
)
from nnunetv2_swinfuse.benchmark.table import read_rows
from nnunetv2_swinfuse.errors import BenchmarkError

from .tables import DATASET, fill, make_experiment, noisy

ARMS = ("nnunet", "resenc_m")


def test_ranks(tmp_path):
    workspace, _ = fill(make_experiment(), tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.3))
    ranks = mean_ranks(case_scores(read_rows(workspace.results), DATASET, "3", "Dice", ARMS))
    assert ranks["nnunet"] == pytest.approx((2.0, 2.0, 2.0))
    assert ranks["resenc_m"] == pytest.approx((1.0, 1.0, 1.0))


def with_empties(tmp_path, empty):
    experiment = make_experiment(test_cases=7)
    workspace, _ = fill(experiment, tmp_path, lambda cell, cases: np.full(len(cases), 0.8), empty=empty)
    return read_rows(workspace.results)


def test_a_class_that_nobody_has_is_left_out_of_its_case(tmp_path):
    rows = with_empties(
        tmp_path, lambda cell: {(case, "core"): "both" for case in [f"case_{i:03d}" for i in range(30)]}
    )
    scores = case_scores(rows, DATASET, "3", "Dice", ARMS)
    assert np.unique(scores.folds[0]) == pytest.approx([0.8])
    assert absent_classes(rows) == [f"core in {DATASET}"]


def test_all_empty_classes_are_an_error(tmp_path):
    names = [(f"case_{i:03d}", name) for i in range(30) for name in ("core", "shell")]
    rows = with_empties(tmp_path, lambda cell: dict.fromkeys(names, "both"))
    with pytest.raises(BenchmarkError, match="no test case has any class"):
        case_scores(rows, DATASET, "3", "Dice", ARMS)


def test_an_invented_class_costs_the_arm_that_invents_it(tmp_path):
    def empty(cell):
        verdict = "invented" if cell.arm == "resenc_m" else "both"
        return {(f"case_{i:03d}", "core"): verdict for i in range(30)}

    rows = with_empties(tmp_path, empty)
    scores = case_scores(rows, DATASET, "3", "Dice", ARMS)
    # Rightly absent is 1, invented 0, the other class 0.8.
    assert scores.case_means("nnunet") == pytest.approx([0.9] * 7)
    assert scores.case_means("resenc_m") == pytest.approx([0.4] * 7)
    counts = emptiness_counts(rows).set_index(["arm", "class"])
    assert counts.loc[("resenc_m", "core"), "invented"] == 21
    assert counts.loc[("nnunet", "core"), "both"] == 21
    assert counts.loc[("nnunet", "shell"), "present"] == 21


def test_means_leave_out_what_nnunet_leaves_out(tmp_path):
    rows = with_empties(tmp_path, lambda cell: {(f"case_{i:03d}", "core"): "both" for i in range(0, 30, 2)})
    means = foreground_means(rows)
    assert means[means["metric"] == "Dice"]["value"].to_numpy() == pytest.approx([0.8] * 6)


def test_a_missing_value_is_named(tmp_path):
    experiment = make_experiment()
    workspace, cells = fill(experiment, tmp_path, noisy)
    rows = read_rows(workspace.results)
    case = rows["case"].iloc[0]
    rows = rows.drop(rows[(rows["cell"] == cells[0].name) & (rows["case"] == case)].index)
    with pytest.raises(BenchmarkError, match=f"case {case}.*has 5 values of Dice, expected 6"):
        case_scores(rows, DATASET, "3", "Dice", ARMS)


def test_a_class_without_a_value_is_named(tmp_path):
    workspace, _ = fill(make_experiment(), tmp_path, noisy)
    rows = read_rows(workspace.results)
    row = rows.index[rows["metric"] == "Dice"][0]
    rows.loc[row, "value"] = np.nan
    with pytest.raises(BenchmarkError, match=f"case {rows.loc[row, 'case']}, class core.*has no value of Dice"):
        case_scores(rows, DATASET, "3", "Dice", ARMS)
