import json
from pathlib import Path

import pytest

from nnunetv2_swinfuse.benchmark.experiment import from_dict, load_experiment
from nnunetv2_swinfuse.errors import BenchmarkError

from .tables import make_experiment

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["nnunet", "resenc"]}, "no arm 'resenc'; there are nnunet, resenc_m"),
        ({"arms": ["nnunet", "nnunet"]}, "arms has an entry twice"),
        ({"arms": ["nnunet", "swinfuse"]}, "arms swinfuse need a pretrained encoder: give 'pretraining'"),
        ({"colour": "red"}, "no field colour; there are name, datasets, arms"),
        ({"length": {"epoch": 1}}, "length has no field epoch; there are epochs, iterations"),
        ({"length": {"epochs": 0}}, "length.epochs is 0; expected a whole number above 0"),
        ({"plans": {"spacing": [1, 1, 1]}}, "plans has no field spacing; there are patch_size"),
        ({"folds": [0]}, "either 'folds'"),
        ({"folds": [5], "test_cases": None}, "nnU-Net's cross-validation has 0 to 4"),
        ({"test_cases": 1}, "1 case\\(s\\)"),
        ({"labels": [0]}, 'labels is 0; expected numbers of cases, or "all"'),
        ({"labels": []}, "labels is empty"),
        ({"seeds": [-1]}, "-1 is no number"),
        ({"device": "tpu"}, r"expected one of \['cpu', 'cuda'\]"),
        ({"orientation": "LPS"}, r"orientation is 'LPS'; expected one of \['as_stored', 'RAS'\]"),
        ({"configuration": "2d"}, "3D network"),
        ({"mirrored_training": False}, "mirroring is true; expected false where mirrored_training is"),
        ({"alpha": 5}, "alpha is 5; expected a probability"),
        ({"tolerance_mm": 0}, "tolerance_mm is 0; expected more than 0"),
        ({"spacing": [2, 2]}, r"spacing is \[2.0, 2.0\]; expected three numbers above 0"),
        ({"spacing": [2, 2, 2], "configuration": "3d_lowres"}, "with configuration 3d_fullres"),
        ({"comparisons": [["nnunet", "swinfuse"]]}, "'swinfuse' is no arm of this experiment; it has nnunet, resenc_m"),
        ({"baseline": "scratch"}, "'scratch' is no arm"),
        (
            {"arms": [{"name": "wide", "trainer": "nnUNetTrainerSwinFUSE", "plans": {"features_per_stage": [8, 16]}}]},
            "arm wide: plans.features_per_stage is of nnU-Net's own networks",
        ),
        ({"pretraining": {"collections": ["CTMR"]}}, "'steps' or as 'minutes'"),
        ({"pretraining": {"collections": ["CTMR"], "steps": 1, "minutes": 1}}, "one of the two"),
        ({"pretraining": {"collections": [], "steps": 1}}, "collections is empty"),
        ({"datasets": 501}, "wrong kind"),
    ],
)
def test_bad_experiments_say_what_exists(changes, message):
    with pytest.raises(BenchmarkError, match=message):
        make_experiment(**changes)


def test_an_experiment_survives_its_json(tmp_path):
    pretraining = {"collections": ["CTMR", 501], "minutes": 2.5, "settings": {"learning_rate": 2e-3}}
    experiment = make_experiment(arms=["nnunet", "swinfuse", "scratch"], pretraining=pretraining)
    path = tmp_path / "made.json"
    path.write_text(json.dumps(experiment.to_dict()))
    assert load_experiment(path) == experiment


def test_the_file_names_the_experiment(tmp_path):
    path = tmp_path / "few_labels.json"
    path.write_text('{"datasets": [1], "arms": ["nnunet"], "test_cases": 3}')
    assert load_experiment(path).name == "few_labels"


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[]", "holds a list"), ("{}", "datasets, arms missing")]
)
def test_files_that_are_no_experiment_are_named(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=f"bad.json: .*{message}"):
        load_experiment(path)


def test_all_pairs_are_compared_where_none_are_declared():
    assert make_experiment().comparisons == (("resenc_m", "nnunet"),)
    assert make_experiment().baseline == "nnunet"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "experiments").glob("*.json")), ids=lambda path: path.stem
)
def test_experiments_of_this_repository_can_be_read(path):
    assert load_experiment(path).comparisons


def test_values_of_from_dict_are_not_changed():
    values = {"name": "made", "datasets": [1], "arms": ["nnunet"], "test_cases": 3}
    before = json.dumps(values)
    from_dict(values)
    assert json.dumps(values) == before


def test_two_pretrainings_cannot_share_a_name():
    arms = [{"name": name, "like": "swinfuse", "pretraining": {"x": x}} for name, x in (("a", 1), ("b", -1))]
    experiment = make_experiment(arms=arms, pretraining={"collections": ["CTMR"], "steps": 1})
    with pytest.raises(BenchmarkError, match="arm b: its pretraining has the same name, swinfuse__x_1, as another"):
        _ = experiment.pretraining_runs
