import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_swinfuse.benchmark.splits import draw_splits, key, shuffled, store_splits
from nnunetv2_swinfuse.errors import BenchmarkError
from pretraining.collections.collection import Volume
from pretraining.voxel_probe.datasets import LabelledCase, LabelledDataset, stored_split

from .tables import DATASET, make_experiment, read_json

CASES = [f"case_{index:03d}" for index in range(30)]


def test_few_labels_are_among_more_and_never_tested():
    splits = draw_splits(make_experiment(labels=[2, 5, "all"], test_cases=8), DATASET, CASES)
    for seed in (0, 1, 2):
        two, five, everything = (splits[key(labels, seed, 0)] for labels in (2, 5, "all"))
        assert set(two.train) < set(five.train) < set(everything.train)
        assert [len(split.train) for split in (two, five, everything)] == [2, 5, 22]
        assert two.test == everything.test
        assert set(everything.train) | set(everything.test) == set(CASES)
        assert not set(everything.train) & set(everything.test)


def test_seeds_draw_other_labels_and_test_the_same_cases():
    splits = draw_splits(make_experiment(labels=[5]), DATASET, CASES)
    drawn = [splits[key(5, seed, 0)] for seed in (0, 1, 2)]
    assert len({split.train for split in drawn}) == 3
    assert len({split.test for split in drawn}) == 1


def test_a_draw_is_the_same_for_ever():
    # Written down once: a change of this order would make earlier results incomparable.
    assert shuffled(CASES, "seed 0")[:5] == FIRST_OF_SEED_0
    assert shuffled(list(reversed(CASES)), "seed 0")[:5] == FIRST_OF_SEED_0


FIRST_OF_SEED_0 = ["case_029", "case_011", "case_021", "case_025", "case_026"]


def test_folds_are_nnunets():
    splits = draw_splits(make_experiment(labels=["all"], folds=[0, 3], test_cases=None), DATASET, CASES)
    expected = generate_crossval_split(CASES, seed=12345, n_splits=5)
    for fold in (0, 3):
        found = splits[key("all", 0, fold)].for_nnunet()
        assert found == {name: sorted(map(str, expected[fold][name])) for name in ("train", "val")}


def test_named_test_cases():
    splits = draw_splits(make_experiment(test_cases=["case_007", "case_001"]), DATASET, CASES)
    assert splits[key(3, 0, 0)].test == ("case_001", "case_007")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [25]}, "25 labelled cases asked for, but 20 of its 30 are left .* beside 10 test cases"),
        ({"test_cases": 30}, "30 test cases asked for, but it has 30"),
        ({"test_cases": ["case_001", "case_100"]}, "test_cases case_100 are not among its cases"),
    ],
)
def test_too_few_cases(changes, message):
    with pytest.raises(BenchmarkError, match=f"{DATASET}: {message}"):
        draw_splits(make_experiment(**changes), DATASET, CASES)


def test_five_folds_of_few_cases_are_refused():
    with pytest.raises(BenchmarkError, match="6 cases; five folds"):
        draw_splits(make_experiment(folds=[0], test_cases=None), DATASET, CASES[:6])


def test_stored_splits_stay_and_grow(tmp_path):
    store_splits(tmp_path, {DATASET: draw_splits(make_experiment(), DATASET, CASES)})
    before = read_json(tmp_path / "splits.json")
    store_splits(tmp_path, {DATASET: draw_splits(make_experiment(labels=[3, 5]), DATASET, CASES)})
    after = read_json(tmp_path / "splits.json")
    assert before[DATASET].items() < after[DATASET].items()


def test_a_dataset_that_changed_is_refused(tmp_path):
    store_splits(tmp_path, {DATASET: draw_splits(make_experiment(), DATASET, CASES)})
    with pytest.raises(BenchmarkError, match="another split than the one drawn now"):
        store_splits(tmp_path, {DATASET: draw_splits(make_experiment(), DATASET, [*CASES, "case_new", "case_other"])})


def test_the_voxel_probe_reads_what_is_stored(tmp_path):
    splits = draw_splits(make_experiment(labels=[2, 5, "all"], test_cases=8), DATASET, CASES)
    store_splits(tmp_path, {DATASET: splits})
    cases = tuple(LabelledCase(name, Volume("MR", "MR", tmp_path), tmp_path) for name in CASES)
    probed = stored_split(LabelledDataset(DATASET, {1: "shell"}, None, cases), tmp_path / "splits.json", 1)
    assert probed.numbers == (2, 5, 22)
    for labels, number in ((2, 2), (5, 5), ("all", 22)):
        split = splits[key(labels, 1, 0)]
        assert sorted(case.name for case in probed.labelled[:number]) == list(split.train)
        assert [case.name for case in probed.test] == list(split.test)
