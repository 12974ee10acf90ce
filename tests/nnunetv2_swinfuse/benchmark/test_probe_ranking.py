import math

import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark.probe_ranking import correlation, fine_tuned_scores, main, probe_scores, rank
from nnunetv2_swinfuse.errors import BenchmarkError
from pretraining.voxel_probe.results import Key, Results, Row

from .tables import fill, make_experiment

TASK = ("901", "4")


def test_spearmans_correlation_of_known_orders():
    # One swap of neighbours in five: 1 - 6 * 2 / (5 * 24). Of 120 orders, 5 have 0.9 or more, 5 have -0.9 or less.
    rho, p = correlation([1, 2, 3, 5, 4], [10, 20, 30, 40, 50])
    assert (rho, p) == (pytest.approx(0.9), pytest.approx(10 / 120))
    assert correlation([3, 2, 1], [1, 2, 3]) == (pytest.approx(-1), pytest.approx(2 / 6))
    rho, p = correlation([1, 1, 1], [1, 2, 3])
    assert math.isnan(rho)
    assert p == 1


def test_many_arms_are_permuted_at_random():
    values = list(range(12))
    rho, p = correlation(values, values)
    assert (rho, p) == (pytest.approx(1), pytest.approx(2 / 10000, abs=2e-4))


def scores(values):
    """Every arm with one value for two seeds of one case."""
    return {task: {arm: {(seed, "x"): value for seed in (0, 1)} for arm, value in arms.items()}
            for task, arms in values.items()}  # fmt: skip


FINE_TUNED = {TASK: {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.1}, ("901", "all"): {"a": 0.1, "b": 0.2, "c": 0.3}}


def test_only_tasks_and_arms_that_both_have_are_compared():
    probe = {TASK: {"a": 0.1, "b": 0.3, "c": 0.2, "only here": 1.0}, ("902", "4"): {"a": 0.1, "b": 0.2, "c": 0.3}}
    (ranking,) = rank(scores(probe), scores(FINE_TUNED))
    assert (ranking.dataset, ranking.labels, ranking.places) == (*TASK, 2)
    assert list(ranking.arms.items()) == [("b", (0.3, 0.9)), ("c", (0.2, 0.7)), ("a", (0.1, 0.5))]
    assert ranking.rho == pytest.approx(1)
    with pytest.raises(BenchmarkError, match=r"three arms in common. Probe: 901, 4 labels: x. .*--same PROBE"):
        rank(scores({TASK: {"x": 0.1}}), scores(FINE_TUNED))


def test_only_seeds_and_cases_that_all_arms_have_count():
    probe, fine_tuned = scores({TASK: {"a": 0.1, "b": 0.3, "c": 0.2}}), scores(FINE_TUNED)
    # A seed that only one arm has, which would make it the best.
    fine_tuned[TASK]["a"][2, "x"] = 100.0
    probe[TASK]["c"][0, "other case"] = 100.0
    del fine_tuned[TASK]["b"][1, "x"]
    (ranking,) = rank(probe, fine_tuned)
    assert (ranking.places, ranking.rho) == (1, pytest.approx(1))
    fine_tuned[TASK]["b"] = {(0, "another"): 0.9}
    with pytest.raises(BenchmarkError, match=r"no seed and case that a, b, c have .* --splits"):
        rank(probe, fine_tuned)


CASES = ("case_003", "case_004")
ARMS = ["first", "second", "third", "scratch"]


@pytest.fixture
def tables(tmp_path):
    """A probe and an experiment that rank four arms in opposite orders; the probe calls the last one `random`."""
    arms = [{"name": name, "like": "nnunet"} for name in ARMS]

    def dice(cell, cases):
        assert tuple(cases) == CASES
        return np.full(len(cases), 0.9 - 0.1 * ARMS.index(cell.arm) + 0.1 * cell.seed)

    workspace, _ = fill(make_experiment(arms=arms, labels=[4], seeds=[0, 1], test_cases=list(CASES)), tmp_path, dice)
    results, rows = Results(tmp_path / "probe.csv"), []
    for place, arm in enumerate([*ARMS[:3], "random"]):
        for seed in (0, 1):
            dice = {"shell": 0.1 * place + 0.02 * seed, "core": 0.1 * place + 0.02 * seed + 0.2}
            # Zero-shot rows and other metrics do not count.
            measures = [("901", "dice", 0.0), ("902", "dice", 0.4), ("901", "auc", 0.3)]
            rows += [
                Row(Key(arm, seed, "901", tested_on, 4, seed), case, organ, metric, value + shift, "")
                for tested_on, metric, shift in measures
                for case in CASES
                for organ, value in dice.items()
            ]
    results.add(rows)
    return results.path, workspace.results


def test_values_are_means_over_the_classes(tables):
    probe, results = tables
    of_probe = probe_scores(probe, {"random": "scratch"})
    assert list(of_probe) == [TASK]
    assert of_probe[TASK]["second"] == pytest.approx({(s, c): 0.2 + 0.02 * s for s in (0, 1) for c in CASES})
    of_cells = fine_tuned_scores(results)[TASK]
    assert set(of_cells) == set(ARMS)
    assert of_cells["scratch"] == pytest.approx({(s, c): 0.6 + 0.1 * s for s in (0, 1) for c in CASES})


def test_all_labels_are_as_many_cases_as_the_split_has(tmp_path):
    def dice(cell, cases):
        return np.full(len(cases), 0.5)

    workspace, _ = fill(make_experiment(labels=[4, "all"], seeds=[0, 1], test_cases=list(CASES)), tmp_path, dice)
    # The probe has the splits of the comparison, whose pool is all but the test cases.
    assert set(fine_tuned_scores(workspace.results)) == {TASK, ("901", "28")}
    (workspace.results / "splits.json").unlink()
    with pytest.raises(BenchmarkError, match=r"splits.json: no split of .*, all labels, seed 0, fold 0"):
        fine_tuned_scores(workspace.results)


def test_encoders_count_with_the_split_of_their_own_seed(tables):
    # Random encoders are measured with every call, on the split of every seed.
    probe, _ = tables
    expected = probe_scores(probe, {"random": "scratch"})
    others = [Row(Key("random", seed, "901", "901", 4, 1 - seed), case, "shell", "dice", 0.9, "")
              for seed in (0, 1) for case in CASES]  # fmt: skip
    Results(probe).add(others)
    assert probe_scores(probe, {"random": "scratch"}) == expected


def test_the_command_prints_arms_and_correlation(tables, capsys):
    probe, results = tables
    main([str(probe), str(results), "--same", "random=scratch"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:6]] == ARMS
    # Of 24 orders, one is as strong with each sign.
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == ["901", "4", "4", "4", "-1.000", "0.083"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--same", "random"], "--same random: expected PROBE=FINE_TUNED"),
        (["--same", "random=scratch", "first=x", "second=y"], "three arms in common"),
        (["--same", "random=third"], "two arms of"),
    ],
)
def test_what_cannot_be_compared_is_refused(tables, words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*map(str, tables), *words])
    assert message in capsys.readouterr().err


def test_missing_tables_are_named(tables, tmp_path, capsys):
    probe, results = tables
    for words, message in (([tmp_path / "no.csv", results], "no such table"), ([probe, tmp_path], "no finished cell")):
        with pytest.raises(SystemExit, match="2"):
            main([*map(str, words)])
        assert message in capsys.readouterr().err
