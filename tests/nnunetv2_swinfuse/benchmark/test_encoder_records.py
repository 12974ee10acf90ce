import pytest

from nnunetv2_swinfuse.benchmark.cells import Workspace
from nnunetv2_swinfuse.benchmark.encoder_records import (
    encoder_of,
    learning_settings,
    pretraining_seconds,
    seen_cases,
    training_seconds,
)
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.errors import BenchmarkError

from .tables import make_experiment, read_json


def test_a_case_is_seen_if_any_of_its_images_is(tmp_path):
    write_json(tmp_path / "volumes.json", ["a", "b", "c"])
    images = {"one": ["x", "b"], "two": ["x"], "three": ["c"], "four": []}
    assert seen_cases(tmp_path, images) == ["one", "three"]


def test_a_pretraining_takes_as_long_as_those_of_other_seeds(tmp_path):
    experiment = make_experiment(
        arms=["swinfuse", {"name": "small", "like": "swinfuse", "pretraining": {"feature_size": 8}}],
        seeds=[0, 1, 2, 9],
        pretraining={"collections": ["Pairs"], "steps": 1, "per_seed": True},
    )
    workspace = Workspace(tmp_path, tmp_path / "results")
    first, *finished, last = [run for run in experiment.pretraining_runs if not run.own]
    small = next(run for run in experiment.pretraining_runs if run.own)
    assert pretraining_seconds(experiment, workspace, first) is None
    for seeded, seconds in zip((first, *finished), (100.0, 300.0, 120.0), strict=True):
        record = {"recipe": seeded.recipe, "settings": dict(seeded.settings), "seconds": seconds}
        write_json(workspace.pretraining(seeded) / "encoder.json", record)
    assert pretraining_seconds(experiment, workspace, last) == 120
    assert pretraining_seconds(experiment, workspace, small) is None
    # Records of earlier versions have no settings.
    record = workspace.pretraining(first) / "encoder.json"
    write_json(record, {name: value for name, value in read_json(record).items() if name != "settings"})
    assert pretraining_seconds(experiment, workspace, first) == 210


def test_an_unfinished_pretraining_is_named(tmp_path):
    experiment = make_experiment(arms=["swinfuse", "nnunet"], pretraining={"collections": ["Pairs"], "steps": 1})
    workspace = Workspace(tmp_path, tmp_path / "results")
    assert encoder_of(experiment, experiment.arm("nnunet"), 0, workspace) is None
    with pytest.raises(BenchmarkError, match="the pretraining swinfuse is not done"):
        encoder_of(experiment, experiment.arm("swinfuse"), 0, workspace)


def test_several_runs_have_no_one_duration(tmp_path):
    with pytest.raises(BenchmarkError, match=r"0 runs with a checkpoint_latest\.pth, expected 1"):
        training_seconds(tmp_path)


def test_learning_settings_leave_out_what_changes_nothing(tmp_path):
    settings = {"recipe": "swinfuse", "contrastive_loss": "correlation", "seed": 3, "steps": 251, "workers": 4}
    write_json(tmp_path / "Pairs" / "swinfuse__tiny" / "configuration.json", settings)
    assert learning_settings(tmp_path) == {"recipe": "swinfuse", "contrastive_loss": "correlation"}
    write_json(tmp_path / "Pairs" / "swinfuse__base" / "configuration.json", settings)
    with pytest.raises(BenchmarkError, match=r"2 runs with a configuration\.json, expected 1"):
        learning_settings(tmp_path)
