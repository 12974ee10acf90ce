import numpy as np
import pytest
from scipy import stats

from nnunetv2_swinfuse.benchmark.noninferiority import margin_p, rule_out_loss
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.statistics import estimate

from .tables import DATASET, analysed, make_experiment, noisy

MEANS = np.array([0.01, -0.01, 0.02, 0.0])


def runs(means):
    """Differences of whole runs: their t test is all there is."""
    return estimate([np.repeat(np.asarray(means)[:, None], 20, axis=1)])


def test_the_p_value_is_that_of_a_t_test_against_the_margin():
    expected = stats.ttest_1samp(MEANS, -0.02, alternative="greater").pvalue
    assert margin_p(runs(MEANS), 0.02) == pytest.approx(2 * expected)


def test_it_is_below_5_percent_where_the_interval_lies_above_the_margin():
    low = runs(MEANS).interval()[0]
    assert margin_p(runs(MEANS), -low * 1.01) < 0.05 < margin_p(runs(MEANS), -low * 0.99)


def test_a_certain_difference_and_a_single_run():
    assert margin_p(runs([0.0, 0.0, 0.0]), 0.02) == 0.0
    assert margin_p(runs([-0.02, -0.02, -0.02]), 0.02) == 1.0
    assert margin_p(estimate([np.ones((1, 9))]), 0.02) == 1.0


def claims(tmp_path, shift, **changes):
    """Tests of resenc_m, which is better than nnunet by `shift`."""
    pairs = [["resenc_m", "nnunet", 901]]
    experiment = make_experiment(no_loss={"margin": 0.02, "pairs": pairs}, **changes)

    def values(cell, cases):
        return noisy(cell, cases, shift, run=0.001, rest=0.001)

    return analysed(tmp_path, values, experiment)[2]


def test_no_loss_is_shown_where_nothing_is_lost(tmp_path):
    analysis = claims(tmp_path, 0.0)
    (claim,) = analysis.no_loss
    assert claim.shown
    words = f"resenc_m against nnunet on {DATASET}, 3 labels: a loss of 0.02 Dice or more is ruled out (Dice"
    assert analysis.sentences[-1].startswith(words)
    assert analysis.to_dict()["no_loss"][0]["shown"] is True


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_too_few_runs_are_the_reason_where_there_are_too_few(tmp_path, seeds):
    (claim,) = claims(tmp_path, 0.0, seeds=seeds).no_loss
    assert f"is not ruled out ({len(seeds)} run(s) of each arm; Dice" in claim.sentence
    assert "cannot be seen in fewer than 3 on a test split" in claim.sentence
    # A small p beside it would say the opposite.
    assert "p =" not in claim.sentence


def test_it_is_not_shown_where_as_much_as_the_margin_is_lost(tmp_path):
    (claim,) = claims(tmp_path, -0.025).no_loss
    assert not claim.shown
    assert "is not ruled out" in claim.sentence


def test_two_runs_show_no_loss_either(tmp_path):
    (claim,) = claims(tmp_path, 0.0, seeds=[0, 1]).no_loss
    assert claim.p < 0.05
    assert not claim.shown


def test_tests_that_cannot_be_made_yet_count(tmp_path):
    scores = claims(tmp_path, 0.0).groups[0].scores
    alone, declared = (rule_out_loss([(scores, "resenc_m", "nnunet")], 0.02, 0.05, size)[0].p for size in (1, 4))
    assert declared == pytest.approx(4 * alone)
    assert rule_out_loss([], 0.02, 0.05, 4) == []


@pytest.mark.parametrize(
    ("no_loss", "message"),
    [
        ({"margin": 0.02, "pairs": [["nnunet", "ct", 901]]}, "'ct' is no arm of this experiment"),
        ({"margin": 0.02, "pairs": [["nnunet", "resenc_m", 5]]}, "5 is no dataset of this experiment; it has 901"),
        ({"margin": 2, "pairs": []}, "margin is 2; expected a Dice above 0 and below 1"),
        ({"margin": 0.02, "pairs": [["nnunet", "resenc_m"]]}, "wrong kind"),
        ({"margins": 0.02}, "no_loss has no field margins; there are margin, pairs"),
    ],
)
def test_bad_claims(no_loss, message):
    with pytest.raises(BenchmarkError, match=message):
        make_experiment(no_loss=no_loss)
