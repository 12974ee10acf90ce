import sys

import numpy as np
import pytest
from scipy import stats

from nnunetv2_swinfuse.benchmark.comparison import (
    compare,
    holm,
    sentence,
    smallest_wilcoxon_p,
)
from nnunetv2_swinfuse.benchmark.scores import case_scores
from nnunetv2_swinfuse.benchmark.table import read_rows
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.statistics import crossed_bootstrap

from .tables import DATASET, fill, make_experiment, noisy

ARMS = ("nnunet", "resenc_m")


def compared(tmp_path, values, metric="Dice", **changes):
    experiment = make_experiment(**changes)
    workspace, _ = fill(experiment, tmp_path, values)
    scores = case_scores(read_rows(workspace.results), DATASET, "3", metric, ARMS)
    (found,) = compare([(scores, "resenc_m", "nnunet")], "nnunet")
    return found, scores


def test_a_known_shift_is_better_and_the_other_way_round_worse(tmp_path):
    found, scores = compared(tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.1))
    assert found.estimate.mean == pytest.approx(0.1, abs=0.02)
    assert found.verdict == "better"
    (other,) = compare([(scores, "nnunet", "resenc_m")], "nnunet")
    assert other.verdict == "worse"
    assert other.estimate.mean == -found.estimate.mean
    assert "worse" in sentence(other)


def test_of_a_distance_less_is_better(tmp_path):
    found, _ = compared(tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.1), metric="HD95")
    assert found.estimate.mean < 0
    assert found.verdict == "better"


def test_figures_agree_with_scipy_on_what_was_written(tmp_path):
    found, scores = compared(tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.01))
    by_case = scores.case_means("resenc_m") - scores.case_means("nnunet")
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(by_case, zero_method="pratt").pvalue)
    assert found.noise == pytest.approx(np.std(scores.run_means("nnunet"), ddof=1))
    assert scores.of("nnunet")[0].shape == (3, 10)


def test_no_difference_is_not_shown_and_says_how_many_runs_it_would_take(tmp_path):
    def values(cell, cases):
        return noisy(cell, cases, run=0.0) + (0.0, 0.03, -0.01)[cell.seed] * (cell.arm == "resenc_m")

    found, _ = compared(tmp_path, values)
    assert found.verdict == "not shown"
    assert found.needed > 3
    assert f"would take {found.needed} runs of each arm, {found.needed - 3} more" in sentence(found)


def test_ties_everywhere(tmp_path):
    found, _ = compared(tmp_path, lambda cell, cases: np.full(len(cases), 0.5))
    assert (found.verdict, found.wilcoxon, found.p, found.effect) == ("not shown", 1.0, 1.0, 0.0)
    assert "do not differ at all" in sentence(found)


def test_few_cases_that_outweigh_most_others_give_no_verdict(tmp_path):
    def values(cell, cases):
        by_case = np.where(np.arange(len(cases)) < 4, 0.5, -0.001 - 1e-5 * np.arange(len(cases)))
        return 0.4 + np.random.default_rng(cell.seed).normal(0, 1e-4) + by_case * (cell.arm == "resenc_m")

    found, _ = compared(tmp_path, values, test_cases=27)
    # Both tests are significant: the mean is above 0, the ranks below.
    assert found.estimate.mean > 0 > found.effect
    assert max(found.p, found.wilcoxon) < 0.05
    assert found.verdict == "not shown"
    assert "Mean and ranks contradict each other" in sentence(found)


def test_one_lucky_run_proves_nothing(tmp_path):
    def values(cell, cases):
        lucky = cell.arm == "resenc_m" and cell.seed == 1
        return noisy(cell, cases, run=0.001, rest=0.001) + (0.1 if lucky else 0.0)

    found, _ = compared(tmp_path, values)
    assert found.estimate.mean == pytest.approx(0.033, abs=0.01)
    assert found.wilcoxon < 0.01
    assert found.verdict == "not shown"


def test_two_runs_are_too_few_for_a_verdict(tmp_path):
    found, _ = compared(tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.3), seeds=[0, 1])
    assert found.verdict == "not shown"
    assert "fewer than 3" in sentence(found)


def test_few_test_cases_cannot_reach_significance(tmp_path):
    found, _ = compared(tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.3), test_cases=4)
    assert found.verdict == "not shown"
    assert "cannot reach p < 0.05 with 4 test cases." in sentence(found)


def test_nor_can_more_of_them_in_a_large_family(tmp_path):
    # All 10 cases agree: p = 2 / 2**10 = 0.00195, which 26 comparisons make 0.0508 and 25 make 0.0488.
    found, scores = compared(tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.3))
    assert found.wilcoxon == smallest_wilcoxon_p(10) == 2 / 2**10
    for declared, verdict in ((25, "better"), (26, "not shown")):
        (found,) = compare([(scores, "resenc_m", "nnunet")], "nnunet", declared=declared)
        assert found.verdict == verdict
        assert found.wilcoxon_adjusted == pytest.approx(declared * 2 / 2**10)
    assert "cannot reach p < 0.05 with 10 test cases in a family of 26 comparisons" in sentence(found)


def test_the_bootstrap_stands_beside_the_interval_that_decides(tmp_path):
    found, scores = compared(tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.1))
    differences = [a - b for a, b in zip(scores.of("resenc_m"), scores.of("nnunet"), strict=True)]
    assert found.bootstrap == pytest.approx(np.quantile(crossed_bootstrap(differences), [0.025, 0.975]))
    assert found.bootstrap[0] < found.estimate.mean < found.bootstrap[1]


def test_folds_are_put_together(tmp_path):
    experiment = make_experiment(folds=[0, 1, 2, 3, 4], test_cases=None, seeds=[0])
    workspace, _ = fill(experiment, tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.1))
    scores = case_scores(read_rows(workspace.results), DATASET, "3", "Dice", ARMS)
    assert [fold.shape for fold in scores.folds] == [(2, 1, 6)] * 5
    (found,) = compare([(scores, "resenc_m", "nnunet")], "nnunet")
    assert found.verdict == "better"
    assert np.isnan(found.noise)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1; never below the one before.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


def test_a_family_is_stricter_than_one_comparison(tmp_path):
    found, scores = compared(tmp_path, lambda cell, cases: noisy(cell, cases, shift=0.03))
    family = compare([(scores, "resenc_m", "nnunet")] * 8, "nnunet")
    assert family[0].p == pytest.approx(min(1.0, 8 * found.p))
    assert family[0].wilcoxon == found.wilcoxon


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    with pytest.raises(BenchmarkError, match=r'is not installed: .*pip install "\.\[benchmark\]" in a checkout'):
        holm([0.5])
