import json

import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark.analysis import means_table
from nnunetv2_swinfuse.benchmark.table import read_rows
from nnunetv2_swinfuse.benchmark.tables import markdown_report, wide_means

from .tables import COMMAND, DATASET, analysed, fill, make_experiment, noisy


def test_json_is_strict_also_with_one_run(tmp_path):
    experiment, _, analysis = analysed(tmp_path, experiment=make_experiment(seeds=[0]))
    content = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    assert content["verdicts"][0]["interval"] == [None, None]
    assert "unknown: one run" in markdown_report(experiment, analysis, COMMAND)


def test_a_refused_comparison_has_no_verdict(tmp_path):
    late = f"nnunet__{DATASET}__3_labels__seed_2__fold_0"
    experiment, _, analysis = analysed(tmp_path, skip=(late,))
    assert analysis.to_dict()["verdicts"] == []
    assert f"run: swinfuse_benchmark made.json --cell {late}" in markdown_report(experiment, analysis, COMMAND)


def test_empty_classes_are_counted(tmp_path):
    def empty(cell):
        return {(f"case_{i:03d}", "core"): "invented" if cell.arm == "nnunet" else "both" for i in range(30)}

    _, _, analysis = analysed(tmp_path, lambda cell, cases: np.full(len(cases), 0.8), empty=empty)
    counts = {(entry["arm"], entry["class"]): entry for entry in analysis.to_dict()["empty"]}
    assert counts["nnunet", "core"]["invented"] == 30


def test_means_over_runs_by_hand(tmp_path):
    # All cases of a run have its seed's value: 0.5, 0.6, 0.9.
    workspace, _ = fill(
        make_experiment(), tmp_path, lambda cell, cases: np.full(len(cases), (0.5, 0.6, 0.9)[cell.seed])
    )
    table = means_table(read_rows(workspace.results)).set_index(["arm", "metric", "class"])
    for name in ("shell", "core", "foreground"):
        row = table.loc[("nnunet", "Dice", name)]
        assert row["mean"] == pytest.approx(2 / 3)
        assert row["deviation"] == pytest.approx((0.13 / 3) ** 0.5)
        assert row["runs"] == 3


def test_a_class_that_is_rightly_absent_in_some_runs_stays_one_row(tmp_path):
    def empty(cell):
        # In the last seed no case shows the class, in reference or prediction.
        return {(f"case_{i:03d}", "core"): "both" for i in range(30)} if cell.seed == 2 else {}

    _, _, analysis = analysed(tmp_path, lambda cell, cases: np.full(len(cases), 0.5 + 0.1 * cell.seed), empty=empty)
    means = analysis.means.set_index(["arm", "metric", "class"])
    core = means.loc[("nnunet", "Dice", "core")]
    assert (core["mean"], core["runs"]) == (pytest.approx(0.55), 3)
    # The mean of the classes that have a value; nnU-Net's would be NaN in the last seed.
    assert means.loc[("nnunet", "Dice", "foreground"), "mean"] == pytest.approx(0.6)
    assert set(means["runs"]) == {3}
    assert len(wide_means(analysis)) == 6


def test_all_metrics_of_an_absent_class_are_of_as_many_runs(tmp_path):
    workspace, _ = fill(make_experiment(), tmp_path, noisy)
    rows = read_rows(workspace.results)
    # Two empty masks have no Dice and no distance, but volumes that do not differ.
    absent = (rows["class"] == "core") & (rows["seed"] == 0)
    rows.loc[absent, "value"] = np.where(rows.loc[absent, "metric"] == "VolumeError", 0.0, np.nan)
    assert set(means_table(rows)["runs"]) == {3}


def test_verdicts_rest_on_dice_and_other_metrics_stand_beside_them(plain_analysis):
    content = plain_analysis[2].to_dict()
    assert [(entry["metric"], entry["verdict"]) for entry in content["verdicts"]] == [("Dice", "better")]
    assert [entry["metric"] for entry in content["other_metrics"]] == ["HD95", "SurfaceDice", "VolumeError"]
    # HD95 of these tables is 10 (1 - Dice).
    dice, distance = content["verdicts"][0]["estimate"], content["other_metrics"][0]["estimate"]
    assert distance["mean"] == pytest.approx(-10 * dice["mean"], abs=1e-4)


@pytest.mark.parametrize("inventor", ["nnunet", "resenc_m"])
def test_a_class_that_a_third_arm_invents_changes_no_difference(tmp_path, inventor):
    def values(cell, cases):
        return np.full(len(cases), 0.9 if cell.arm == "swin_unetr" else 0.8)

    def empty(cell):
        verdict = "invented" if cell.arm == inventor else "both"
        return {(f"case_{i:03d}", "core"): verdict for i in range(30)}

    experiment = make_experiment(
        arms=["nnunet", "resenc_m", "resenc_l", "swin_unetr"], comparisons=[["swin_unetr", "resenc_l"]]
    )
    _, _, analysis = analysed(tmp_path, values, experiment, empty=empty)
    (found,) = analysis.comparisons["Dice"]
    # Of the class that both arms have; nnunet is the baseline.
    assert found.estimate.mean == pytest.approx(0.1)
    assert found.noise == pytest.approx(0.0)


@pytest.mark.parametrize(("arm", "verdict"), [("swinfuse", "not shown"), ("scratch", "better")])
def test_folds_that_begin_with_one_encoder_are_not_independent(tmp_path, arm, verdict):
    """The encoder of a seed is good or bad in all five folds: with three seeds that is three differences, not 15."""

    def values(cell, cases):
        of_encoder = (0.001, 0.02, 0.05)[cell.seed] if cell.arm == arm else 0.0
        return noisy(cell, cases, run=0.0, rest=0.001) + of_encoder

    experiment = make_experiment(
        arms=["nnunet", arm], folds=[0, 1, 2, 3, 4], test_cases=None,
        pretraining={"collections": ["Pairs"], "steps": 1, "per_seed": True},
    )  # fmt: skip
    _, _, analysis = analysed(tmp_path, values, experiment)
    (found,) = analysis.comparisons["Dice"]
    assert found.estimate.cases == 30
    assert found.verdict == verdict


def test_what_an_encoder_file_was_pretrained_on_is_not_known_and_every_report_says_so(tmp_path):
    def encoder(cell):
        return {"encoder": {"sha256": "e", "saw": None}} if cell.arm == "nnunet" else {}

    experiment, _, analysis = analysed(tmp_path, changes=encoder)
    assert analysis.to_dict()["unchecked_encoders"] == ["nnunet"]
    assert "the encoder of nnunet was pretrained on was not checked" in markdown_report(experiment, analysis, COMMAND)


def test_seeds_that_drew_the_same_cases_are_one_run(tmp_path):
    # Of two cases: three seeds draw two sets.
    few = make_experiment(test_cases=28, labels=[1])
    _, _, analysis = analysed(tmp_path / "few", experiment=few)
    (comparison,) = analysis.comparisons["Dice"]
    assert comparison.estimate.runs == 2
    assert comparison.verdict == "not shown"
    (repeated,) = analysis.repeated
    assert "drew the same labelled cases and are one run" in repeated
    assert f"- {repeated}." in markdown_report(few, analysis, COMMAND)
    # Each set counts the same: 0.1 in one of them, 0.3 in the other, whichever has two seeds.
    same = [int(seed) for seed in repeated.split("seeds ")[1].split(" drew")[0].split(", ")]

    def values(cell, cases):
        better = (0.1 if cell.seed in same else 0.3) if cell.arm == "resenc_m" else 0.0
        return np.linspace(0.2, 0.6, len(cases)) + better

    _, _, analysis = analysed(tmp_path / "sets", values, few)
    assert analysis.comparisons["Dice"][0].estimate.mean == pytest.approx(0.2)


def test_all_cases_are_no_draw(tmp_path):
    _, _, analysis = analysed(tmp_path, experiment=make_experiment(labels=["all"]))
    assert analysis.repeated == []
    assert analysis.comparisons["Dice"][0].estimate.runs == 3
