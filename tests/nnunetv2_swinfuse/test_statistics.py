import numpy as np
import pytest
from scipy import stats

from nnunetv2_swinfuse.statistics import (
    critical_difference,
    crossed_bootstrap,
    estimate,
    independent_groups,
    rank_biserial,
    relative_change,
    runs_needed,
    wilcoxon_p,
)


def crossed(generator, runs, cases, run, case, rest, mean=0.0):
    """Differences with known variance components."""
    normal = generator.standard_normal
    return mean + run * normal((runs, 1)) + case * normal((1, cases)) + rest * normal((runs, cases))


def test_no_difference_at_all_is_p_1_and_an_interval_of_0():
    found = estimate([np.zeros((3, 8))])
    assert (found.mean, found.interval(), found.p) == (0.0, (0.0, 0.0), 1.0)
    assert runs_needed(found) is None
    assert wilcoxon_p(np.zeros(8)) == 1.0
    assert rank_biserial(np.zeros(8)) == 0.0


def test_the_same_shift_everywhere_is_certain():
    found = estimate([np.full((3, 8), 0.1)])
    assert found.mean == pytest.approx(0.1)
    assert found.interval() == pytest.approx((0.1, 0.1))
    assert found.p == 0.0


@pytest.mark.parametrize("fold", [[[0.2, 0.0, 0.1], [0.0, 0.2, 0.1], [0.1, 0.1, 0.1]], [[0.2, 0.0], [0.0, 0.2]]])
def test_means_that_agree_by_chance_do_not_make_a_difference_certain(fold):
    # Every run and every case has the mean 0.1, but the differences vary.
    fold = np.array(fold)
    runs, cases = fold.shape
    rest = ((fold - 0.1) ** 2).sum() / ((runs - 1) * (cases - 1))
    error = estimate([fold])
    assert (error.mean, error.variance) == (pytest.approx(0.1), pytest.approx(rest / fold.size))
    assert error.degrees == pytest.approx((runs - 1) * (cases - 1))
    assert error.p == pytest.approx(stats.ttest_1samp([0.0, 0.2], 0).pvalue if runs == 2 else 0.0399, abs=1e-3)


def test_runs_that_differ_as_a_whole_are_the_t_test_of_their_means():
    # No case effect and no rest: the runs' means are all there is.
    means = np.array([0.1, 0.3, 0.2, 0.4])
    found = estimate([np.repeat(means[:, None], 20, axis=1)])
    expected = stats.ttest_1samp(means, 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.degrees == pytest.approx(3)


def test_cases_that_differ_in_the_same_way_in_all_runs_are_the_t_test_of_the_cases():
    by_case = np.random.default_rng(0).normal(0.1, 0.2, 12)
    found = estimate([np.repeat(by_case[None], 3, axis=0)])
    expected = stats.ttest_1samp(by_case, 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_mean_squares_by_hand():
    # Row means 2 and 3, column means 1.5, 2.5, 3.5; the rest is 0. MS_run = 1.5, MS_case = 4... by hand: run sum of
    # squares 3 * 2 * 0.25 = 1.5 with 1 degree, case 2 * (1 + 0 + 1) = 4 with 2, rest 0.
    found = estimate([np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])])
    assert found.mean == 2.5
    assert found.variance == pytest.approx((1.5 + 2.0) / 6)
    assert found.degrees == pytest.approx((1.5 + 2.0) ** 2 / (1.5**2 / 1 + 2.0**2 / 2))
    assert (found.run, found.case, found.rest) == pytest.approx((0.5, 1.0, 0.0))


def test_one_run_shows_nothing_of_other_runs():
    found = estimate([np.random.default_rng(0).normal(1.0, 0.1, (1, 40))])
    assert found.interval() == (-np.inf, np.inf)
    assert (found.p, found.clusters) == (1.0, 0)


@pytest.mark.parametrize("differences", [[[0.1], [0.2], [0.3]], [[0.1], [0.1], [0.1]]])
def test_one_case_shows_nothing_of_other_cases(differences):
    found = estimate([np.array(differences)])
    assert found.interval() == (-np.inf, np.inf)
    assert found.p == 1.0


def test_one_run_of_five_folds_is_the_t_test_of_the_folds():
    generator = np.random.default_rng(0)
    folds = [generator.normal(value, 0.1, (1, 8)) for value in (0.1, 0.2, 0.3, 0.2, 0.1)]
    expected = stats.ttest_1samp([fold.mean() for fold in folds], 0)
    found = estimate(folds)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.clusters == 4


def test_one_outlier_run_widens_the_interval_beyond_0():
    differences = np.full((3, 40), 0.02) + 0.001 * np.random.default_rng(0).standard_normal((3, 40))
    assert estimate([differences]).interval()[0] > 0
    differences[1] -= 0.05
    low, high = estimate([differences]).interval()
    assert low < 0 < high
    # A test over cases only would have been misled by the two others.
    differences[1] += 0.03
    assert wilcoxon_p(differences.mean(0)) < 1e-6
    assert estimate([differences]).p > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "components"),
    [
        (3, (0.02, 0.01, 0.01)),
        (3, (0.01, 0.02, 0.03)),
        (3, (0.005, 0.03, 0.03)),
        (3, (0.0, 0.03, 0.03)),
        (5, (0.01, 0.02, 0.03)),
    ],
)
def test_the_interval_covers_as_often_as_it_says(runs, components):
    generator = np.random.default_rng(1)
    trials = 3000
    covered = 0
    for _ in range(trials):
        low, high = estimate([crossed(generator, runs, 40, *components)]).interval()
        covered += low <= 0 <= high
    # 0.93 to 0.97, widened by two standard errors of the simulation.
    error = 2 * (0.95 * 0.05 / trials) ** 0.5
    assert 0.93 - error < covered / trials < 0.97 + error


def test_the_percentile_bootstrap_is_too_short_with_three_runs():
    generator = np.random.default_rng(1)
    covered = []
    for trial in range(150):
        drawn = crossed_bootstrap([crossed(generator, 3, 40, 0.02, 0.01, 0.01)], 300, trial)
        low, high = np.quantile(drawn, [0.025, 0.975])
        covered.append(low <= 0 <= high)
    assert np.mean(covered) < 0.9


def test_the_bootstrap_agrees_with_its_closed_form():
    # Weights of runs and cases are independent multinomials: mean and variance are known.
    values = np.array([[0.0, 1.0], [2.0, 5.0], [3.0, 1.0]])
    drawn = crossed_bootstrap([values], 200_000, 0)
    centred = values - values.mean()
    by_run, by_case = centred.mean(1), centred.mean(0)
    expected = by_run.var() / 3 + by_case.var() / 2 + (centred - by_run[:, None] - by_case[None]).var() / 6
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.01)
    assert drawn.var() == pytest.approx(expected, rel=0.02)


def test_wilcoxon_is_scipys_with_zeros_by_pratt():
    values = np.array([0.0, 0.0, 0.0, 0.1, -0.05, 0.2, -0.3, 0.35, 0.12])
    assert wilcoxon_p(values) == stats.wilcoxon(values, zero_method="pratt").pvalue
    assert wilcoxon_p(values) != stats.wilcoxon(values, zero_method="wilcox").pvalue


def test_rank_biserial_by_hand():
    # |values| ranked 1, 2, 3.5, 3.5: in favour 2 + 3.5 + 3.5 = 9, against 1, of 10.
    assert rank_biserial(np.array([-0.1, 0.2, 0.4, 0.4, 0.0])) == pytest.approx(0.8)
    assert rank_biserial(np.array([0.1, 0.2])) == 1.0


def test_critical_difference_is_demsars():
    # Demsar 2006, table 5: q of 4 classifiers at 0.05 is 2.569; section 3.2.2 has CD 1.25 for 14 data sets.
    assert critical_difference(4, 14) == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, abs=2e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)


def test_so_many_runs_show_a_difference_of_this_size_four_times_in_five():
    generator = np.random.default_rng(3)
    components = (0.02, 0.01, 0.01)
    found = estimate([crossed(generator, 200, 40, *components, mean=0.0)])
    # Components from many runs are nearly exact; the size is what is asked about.
    asked = type(found)(**{**found.__dict__, "mean": 0.025, "runs": 3})
    runs = runs_needed(asked)
    assert 4 < runs < 12
    shown = np.mean([estimate([crossed(generator, runs, 40, *components, mean=0.025)]).p < 0.05 for _ in range(600)])
    assert 0.74 < shown < 0.92


def test_the_interval_of_a_relative_change_holds_the_true_one_although_the_second_mean_is_uncertain():
    generator = np.random.default_rng(4)
    held = naive = 0
    trials = 600
    for _ in range(trials):
        common = generator.normal(0.0, 0.2, (1, 40))
        first = 0.6 + common + crossed(generator, 3, 40, 0.01, 0.02, 0.03, mean=0.0)
        second = 0.3 + common + crossed(generator, 3, 40, 0.01, 0.02, 0.03, mean=0.0)
        change = relative_change([first], [second])
        assert change.mean == pytest.approx(first.mean() / second.mean() - 1)
        held += change.interval()[0] <= 1.0 <= change.interval()[1]
        low, high = (limit / second.mean() for limit in estimate([first - second]).interval())
        naive += low <= 1.0 <= high
    assert held / trials > 0.92
    assert naive / trials < 0.8


def test_a_relative_change_needs_a_mean_to_divide_by():
    assert relative_change([np.ones((2, 3))], [np.zeros((2, 3))]) is None
    assert str(relative_change([np.full((2, 3), 0.6)], [np.full((2, 3), 0.5)])) == "+0.200 [+0.200, +0.200]"


def test_no_number_of_runs_is_enough_where_cases_differ_too_much():
    differences = np.repeat(np.random.default_rng(0).normal(0.0, 1.0, (1, 10)), 4, axis=0)
    assert runs_needed(estimate([differences - differences.mean() + 0.01])) is None


@pytest.mark.parametrize(
    "folds", [[], [np.array([[1.0, np.nan]])], [np.zeros((2, 3)), np.zeros((3, 3))], [np.zeros(4)]]
)
def test_differences_that_are_no_table_are_refused(folds):
    with pytest.raises(ValueError, match="expected"):
        estimate(folds)


def test_an_estimate_prints_its_interval_where_it_has_one():
    three_runs = np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    # Mean 0.2; the runs' standard error is 0.1 / sqrt(3), with 2 degrees of freedom.
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert str(estimate([three_runs])) == f"+0.200 [{0.2 - half:+.3f}, {0.2 + half:+.3f}]"
    assert str(estimate([three_runs[:1]])) == "+0.100"


def test_seeds_with_the_same_labelled_cases_are_one_group():
    assert independent_groups({0: "ab", 1: "ab", 2: "cd", 5: "ab"}) == [[0, 1, 5], [2]]
    assert independent_groups({0: "ab", 1: "cd"}) == [[0], [1]]
    # All cases that there are: no draw.
    assert independent_groups({0: "abcd", 1: "abcd", 2: "abcd"}) == [[0], [1], [2]]


def test_intervals_cover_where_seeds_share_a_labelled_set_only_if_they_are_one_run():
    generator = np.random.default_rng(0)
    groups = independent_groups({0: "a", 1: "a", 2: "a", 3: "b", 4: "c"})
    covered = np.zeros(2)
    for _ in range(1500):
        of_set = dict(zip("abc", generator.normal(0, 0.02, 3), strict=True))
        runs = np.array([of_set[name] for name in "aaabc"])[:, None] + generator.normal(0, 0.005, (5, 1))
        differences = runs + generator.normal(0, 0.01, (1, 10)) + generator.normal(0, 0.01, (5, 10))
        merged = np.stack([differences[group].mean(axis=0) for group in groups])
        for place, values in enumerate((differences, merged)):
            low, high = estimate([values]).interval()
            covered[place] += low <= 0 <= high
    assert covered[0] / 1500 < 0.85
    assert covered[1] / 1500 > 0.92
