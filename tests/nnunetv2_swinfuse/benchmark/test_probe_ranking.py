import math

import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark.probe_ranking import correlation, fine_tuned_means, main, probe_means, rank
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


def test_only_tasks_and_arms_that_both_have_are_compared():
    probe = {TASK: {"a": 0.1, "b": 0.3, "c": 0.2, "only here": 1.0}, ("902", "4"): {"a": 0.1, "b": 0.2, "c": 0.3}}
    fine_tuned = {TASK: {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.1}, ("901", "all"): {"a": 0.1, "b": 0.2, "c": 0.3}}
    (ranking,) = rank(probe, fine_tuned)
    assert (ranking.dataset, ranking.labels) == TASK
    assert list(ranking.arms.items()) == [("b", (0.3, 0.9)), ("c", (0.2, 0.7)), ("a", (0.1, 0.5))]
    assert ranking.rho == pytest.approx(1)
    with pytest.raises(BenchmarkError, match=r"three arms in common. Probe: 901, 4 labels: x. .*--same PROBE"):
        rank({TASK: {"x": 0.1}}, fine_tuned)


ARMS = ["first", "second", "third", "scratch"]


@pytest.fixture
def tables(tmp_path):
    """A probe and an experiment that rank four arms in opposite orders; the probe calls the last one `random`."""
    results, rows = Results(tmp_path / "probe.csv"), []
    for place, arm in enumerate([*ARMS[:3], "random"]):
        for seed in (0, 1):
            dice = {"shell": 0.1 * place + 0.02 * seed, "core": 0.1 * place + 0.02 * seed + 0.2}
            # Zero-shot rows and other metrics do not count.
            measures = [("901", "dice", 0.0), ("902", "dice", 0.4), ("901", "auc", 0.3)]
            rows += [
                Row(Key(arm, seed, "901", tested_on, 4, seed), case, organ, metric, value + shift, "")
                for tested_on, metric, shift in measures
                for case in ("x", "y")
                for organ, value in dice.items()
            ]
    results.add(rows)
    arms = [{"name": name, "like": "nnunet"} for name in ARMS]

    def dice(cell, cases):
        return np.full(len(cases), 0.9 - 0.1 * ARMS.index(cell.arm) + 0.1 * cell.seed)

    workspace, _ = fill(make_experiment(arms=arms, labels=[4], seeds=[0, 1]), tmp_path, dice)
    return results.path, workspace.results


def test_means_are_over_classes_cases_and_seeds(tables):
    probe, results = tables
    means = probe_means(probe, {"random": "scratch"})
    assert list(means) == [TASK]
    assert means[TASK] == pytest.approx(dict(zip(ARMS, [0.11, 0.21, 0.31, 0.41], strict=True)))
    assert fine_tuned_means(results)[TASK] == pytest.approx(dict(zip(ARMS, [0.95, 0.85, 0.75, 0.65], strict=True)))


def test_the_command_prints_arms_and_correlation(tables, capsys):
    probe, results = tables
    main([str(probe), str(results), "--same", "random=scratch"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:6]] == ARMS
    # Of 24 orders, one is as strong with each sign.
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == ["901", "4", "4", "-1.000", "0.083"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--same", "random"], "--same random: expected PROBE=FINE_TUNED"),
        (["--same", "random=scratch", "first=x", "second=y"], "three arms in common"),
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
