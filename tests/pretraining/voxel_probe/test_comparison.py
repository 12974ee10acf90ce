import numpy as np
import pytest
from scipy import stats

from nnunetv2_swinfuse.errors import InputError
from pretraining.voxel_probe.comparison import compare_arms, seed_differences
from pretraining.voxel_probe.results import Key, Row

CASES = np.array([0.3, 0.5, 0.9])


def rows(arm, by_seed, tested_on="501", metric="dice", labelled=4, split=0):
    """Rows of one class; values of the cases by seed."""
    return [
        Row(Key(arm, seed, "501", tested_on, labelled, split), f"c{n}", "liver", metric, float(value), "x")
        for seed, values in by_seed.items()
        for n, value in enumerate(values)
    ]


def cells(table, line=0):
    return [cell.strip() for cell in table.splitlines()[4 + line].strip("|").split("|")]


def test_seeds_are_compared_with_each_other_on_the_same_cases():
    first = rows("a", {0: CASES + 0.1, 1: CASES + 0.2, 7: CASES})
    # Seed 1 of the second arm lacks a case; seed 3 is only in it.
    second = rows("b", {0: CASES, 1: CASES[:2], 3: CASES})
    differences = seed_differences([*first, *second], "a", "b", "dice")
    assert list(differences) == [0, 1]
    np.testing.assert_allclose(list(differences.values()), [[0.1, 0.1], [0.2, 0.2]])
    assert cells(compare_arms([*first, *second], "a", "b"))[4] == "2"


def test_the_interval_is_that_of_other_seeds_where_cases_agree():
    shifts = {0: 0.1, 1: 0.2, 2: 0.3}
    first = rows("a", {seed: CASES + shift for seed, shift in shifts.items()})
    table = compare_arms([*first, *rows("b", dict.fromkeys(shifts, CASES))], "a", "b")
    assert table.startswith("a minus b\n\n")
    # Every case of a seed differs by the same: the t test of three means is all there is.
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    expected = f"+0.200 [{0.2 - half:+.3f}, {0.2 + half:+.3f}]"
    p = stats.ttest_1samp([0.1, 0.2, 0.3], 0).pvalue
    assert cells(table) == ["501", "501", "4", "dice", "3", expected, f"{p:.3f}", "+0.100, +0.200, +0.300"]


def test_one_seed_has_a_difference_without_an_interval():
    table = compare_arms([*rows("a", {0: CASES}), *rows("b", {0: CASES - 0.25})], "a", "b")
    assert cells(table)[4:] == ["3", "+0.250", "-", "+0.250"]


def test_tasks_and_metrics_have_lines_of_their_own():
    both = [*rows("a", {0: CASES}), *rows("b", {0: CASES})]
    zero_shot = [*rows("a", {0: CASES}, "511", "auc"), *rows("b", {0: CASES}, "511", "auc")]
    few = [*rows("a", {0: CASES}, labelled=2), *rows("b", {0: CASES}, labelled=2)]
    table = compare_arms([*both, *zero_shot, *few], "a", "b")
    assert [cells(table, line)[:4] for line in range(3)] == [
        ["501", "501", "2", "dice"], ["501", "501", "4", "dice"], ["501", "511", "4", "auc"],
    ]  # fmt: skip


def test_encoders_on_the_splits_of_their_own_seeds_are_pooled():
    shifts = {0: 0.1, 1: 0.2, 2: 0.3}
    table = []
    for seed, shift in shifts.items():
        table += rows("a", {seed: CASES + shift}, split=seed) + rows("b", dict.fromkeys(shifts, CASES), split=seed)
    # Another split of an encoder is not another run.
    table += rows("a", {0: CASES + 9}, split=1)
    expected = compare_arms(
        [*rows("a", {s: CASES + shift for s, shift in shifts.items()}), *rows("b", dict.fromkeys(shifts, CASES))],
        "a",
        "b",
    )
    assert compare_arms(table, "a", "b") == expected


def test_arms_without_a_common_seed_are_refused():
    with pytest.raises(InputError, match=r"--compare a b: no seed.*a \(seed 0\), b \(seed 1\)"):
        compare_arms([*rows("a", {0: CASES}), *rows("b", {1: CASES})], "a", "b")


def test_features_without_an_encoder_count_on_every_split():
    table = []
    for seed, shift in {0: 0.1, 1: 0.2, 2: 0.3}.items():
        # Handmade features have the seed 0 on every split.
        table += rows("a", {seed: CASES + shift}, split=seed) + rows("handmade", {0: CASES + shift / 2}, split=seed)
    line = cells(compare_arms(table, "a", "handmade"))
    assert line[-1] == "+0.050, +0.100, +0.150"
    assert line[5].startswith("+0.100 [")


def test_features_without_an_encoder_are_compared_with_every_encoder_on_one_split():
    table = rows("a", {3: CASES + 0.1, 5: CASES + 0.3}) + rows("handmade", {0: CASES})
    assert cells(compare_arms(table, "a", "handmade"))[-1] == "+0.100, +0.300"
    assert cells(compare_arms(table, "handmade", "a"))[-1] == "-0.100, -0.300"


def test_features_of_one_split_are_not_compared_with_encoders_of_another():
    table = rows("handmade", {0: CASES}, split=0)
    for seed in (0, 1):
        table += rows("a", {seed: CASES + 0.1}, split=seed)
    assert cells(compare_arms(table, "a", "handmade"))[-1] == "+0.100"


def test_splits_with_the_same_labelled_cases_are_one_run():
    table = []
    for seed, shift in {0: 0.1, 1: 0.1, 2: 0.3, 3: 0.5}.items():
        table += rows("a", {seed: CASES + shift}, split=seed) + rows("b", {seed: CASES}, split=seed)
    labelled = {("501", 4): {0: "xy", 1: "xy", 2: "yz", 3: "xz"}}
    line = cells(compare_arms(table, "a", "b", labelled))
    # Three sets with means of 0.1, 0.3, 0.5; every case of a set differs by the same.
    half = stats.t.ppf(0.975, 2) * 0.2 / 3**0.5
    assert line[5] == f"+0.300 [{0.3 - half:+.3f}, {0.3 + half:+.3f}]"
    assert line[-1] == "+0.100, +0.100, +0.300, +0.500"
    assert cells(compare_arms(table, "a", "b"))[5].startswith("+0.250 [")


def test_whether_there_are_several_splits_is_decided_for_each_task():
    labelled = {("501", number): {0: "xy", 1: "xy", 2: "yz"} for number in (2, 4)}
    single = rows("a", {s: CASES + shift for s, shift in {0: 0.1, 1: 0.2, 2: 0.3}.items()}, labelled=2)
    single += rows("handmade", {0: CASES}, labelled=2)
    several = []
    for seed, shift in {0: 0.1, 1: 0.2, 2: 0.3}.items():
        several += rows("a", {seed: CASES + shift}, split=seed) + rows("handmade", {0: CASES}, split=seed)
    table = compare_arms([*single, *several], "a", "handmade", labelled)
    for line, alone in enumerate((single, several)):
        assert cells(table, line) == cells(compare_arms(alone, "a", "handmade", labelled))
    # On a single split each of the three encoders is a run, although two splits of others would be one.
    assert cells(table)[5].startswith("+0.200 [")
    assert cells(table)[-1] == "+0.100, +0.200, +0.300"
    assert cells(table, 1)[5].startswith("+0.225 [")
