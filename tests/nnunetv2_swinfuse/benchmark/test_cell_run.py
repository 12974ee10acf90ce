import json
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch

from nnunetv2_swinfuse.benchmark.cell_run import change_plans, installed, write_script
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.places import Place
from nnunetv2_swinfuse.errors import BenchmarkError

from .runners import make_runner
from .tables import read_json

PLANS = {
    "configurations": {
        "3d_fullres": {
            "patch_size": [40, 56, 40],
            "batch_size": 9,
            "architecture": {
                "arch_kwargs": {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "features_per_stage": [32, 64, 128]}
            },
        }
    }
}


def test_plans_are_shrunk():
    changes = {"patch_size": [6, 8, 12], "batch_size": 2, "features_per_stage": [4, 8, 16]}
    block = change_plans(json.loads(json.dumps(PLANS)), "3d_fullres", changes, "plans")["configurations"]["3d_fullres"]
    assert (block["patch_size"], block["batch_size"]) == ([6, 8, 12], 2)
    assert block["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8, 16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [5, 8, 8]}, r"\[5, 8, 8\]; expected multiples of \[2, 4, 4\]"),
        ({"features_per_stage": [4, 8]}, "lists 2 stages, plans has 3"),
    ],
)
def test_plans_that_do_not_fit_the_network(changes, message):
    with pytest.raises(BenchmarkError, match=message):
        change_plans(json.loads(json.dumps(PLANS)), "3d_fullres", changes, "plans")


@pytest.fixture
def prepared(raw, tmp_path):
    """A runner, and the shared folder of preprocessed data of its dataset."""
    runner = make_runner(tmp_path, plans={"batch_size": 2})
    shared = runner.workspace.preprocessed / raw.name
    (shared / "data").mkdir(parents=True)
    shutil.copyfile(raw / "dataset.json", shared / "dataset.json")
    write_json(shared / "dataset_fingerprint.json", {})
    write_json(shared / "nnUNetPlans.json", PLANS)
    return runner, shared


def test_a_cell_has_its_own_plans_and_split_and_shares_the_data(prepared):
    runner, shared = prepared
    cell = runner.cells[0]
    run = runner.cell_run(cell)
    plans = run.lay_out()
    assert plans.parent == runner.workspace.cell(cell) / "nnUNet_preprocessed" / cell.dataset
    assert read_json(plans)["configurations"]["3d_fullres"]["batch_size"] == 2
    assert read_json(shared / "nnUNetPlans.json") == PLANS
    assert (plans.parent / "data").resolve() == (shared / "data").resolve()
    expected = {"train": list(run.split.train), "val": list(run.split.test)}
    assert read_json(plans.parent / "splits_final.json") == [expected]
    # A resumed cell is laid out once more.
    assert run.lay_out() == plans


def test_features_of_the_plans_are_those_of_nnunets_networks_only(raw, tmp_path):
    """The plans of two datasets can have different numbers of stages; a SwinFUSE network has those of its encoder."""
    pretraining = {"collections": ["Pairs"], "steps": 1}
    changes = {"batch_size": 2, "features_per_stage": [4, 8]}
    arms = ["swinfuse", "scratch", "nnunet"]
    runner = make_runner(tmp_path, arms=arms, seeds=[0], pretraining=pretraining, plans=changes)
    shared = runner.workspace.preprocessed / raw.name
    shared.mkdir(parents=True)
    write_json(shared / "nnUNetPlans.json", PLANS)
    swinfuse, scratch, nnunet = (runner.cell_run(cell) for cell in runner.cells)
    for run in (swinfuse, scratch):
        block = run.changed_plans()["configurations"]["3d_fullres"]
        assert block["batch_size"] == 2
        assert block["architecture"] == PLANS["configurations"]["3d_fullres"]["architecture"]
    with pytest.raises(BenchmarkError, match=r"lists 2 stages, .*nnUNetPlans.json has 3; give arms and datasets"):
        nnunet.changed_plans()


def test_a_fold_keeps_its_place_in_nnunets_list(prepared):
    runner, _ = prepared
    run = runner.cell_run(runner.cells[0])
    plans = replace(run, splits={2: run.split}).lay_out()
    nothing = {"train": [], "val": []}
    assert read_json(plans.parent / "splits_final.json") == [nothing, nothing, run.split.for_nnunet()]


def test_a_killed_session_counts_with_what_the_training_recorded(prepared):
    runner, _ = prepared
    run = runner.cell_run(runner.cells[0])
    plans = run.lay_out()
    curves = {name: [0.5, 0.25] for name in ("train_losses", "val_losses", "mean_fg_dice")}
    # Two epochs of 100 and 50 s, with a pause between them, in which the killed training was resumed.
    stamps = {"epoch_start_timestamps": [0.0, 900.0], "epoch_end_timestamps": [100.0, 950.0]}
    write_json(run.model / "cost.json", {"inference_seconds_per_case": 2.5, "predicted_cases": 4})
    write_json(run.model / "validation" / "summary.json", {"foreground_mean": {"Dice": 0.5}})
    torch.save({"logging": {**curves, **stamps}}, run.model / "checkpoint_final.pth")
    # As the trainer wrote it into the model's plans.
    architecture = {"arch_kwargs": {"stem_features": 16}}
    write_json(run.model.parent / "plans.json", {"configurations": {"3d_fullres": {"architecture": architecture}}})
    # The sessions that were measured; one that was killed is not.
    assert run.record(plans, 30.0)["seconds"] == 160.0
    assert run.record(plans, 161.0)["seconds"] == 161.0
    assert run.record(plans, 30.0)["curve"] == curves
    assert run.record(plans, 30.0)["stem_features"] == 16


def test_a_dataset_that_is_not_prepared_is_named(prepared):
    runner, _ = prepared
    with pytest.raises(BenchmarkError, match=r"nnUNetResEncUNetMPlans.json: missing; .* \(--prepare_only\)"):
        runner.cell_run(runner.cells[1]).lay_out()


def test_variables_carry_seed_length_and_settings(raw, tmp_path):
    arms = [{"name": "mine", "settings": {"weight_decay": 0.5}}]
    length = {"epochs": 4, "iterations": 5, "validation_iterations": 6}
    runner = make_runner(tmp_path, arms=arms, seeds=[7], length=length, settings={"initial_lr": 0.25})
    variables = runner.cell_run(runner.cells[0]).variables(Place(threads=3, gpu="1"))
    folder = runner.workspace.cell(runner.cells[0])
    assert variables == {
        "nnUNet_raw": str(raw.parent),
        "nnUNet_preprocessed": str(folder / "nnUNet_preprocessed"),
        "nnUNet_results": str(folder / "nnUNet_results"),
        "BENCHMARK_SEED": "7",
        "BENCHMARK_EPOCHS": "4",
        "BENCHMARK_ITERATIONS": "5",
        "BENCHMARK_VALIDATION_ITERATIONS": "6",
        "BENCHMARK_MIRRORING": "1",
        "BENCHMARK_MIRRORED_TRAINING": "1",
        "BENCHMARK_THREADS": "3",
        "SWINFUSE_ITERATIONS_PER_EPOCH": "5",
        "SWINFUSE_VALIDATION_ITERATIONS_PER_EPOCH": "6",
        "SWINFUSE_INITIAL_LR": "0.25",
        "SWINFUSE_WEIGHT_DECAY": "0.5",
        "CUDA_VISIBLE_DEVICES": "1",
    }


def test_the_script_repeats_the_command_with_its_variables(tmp_path):
    path = tmp_path / "run.sh"
    variables = {"BENCHMARK_SEED": "3", "nnUNet_raw": "/a b"}
    environment = {**variables, "nnUNet_extTrainer": "/folder", "HOME": "/nowhere"}
    write_script(path, ["printenv", "BENCHMARK_SEED", "nnUNet_raw"], environment, variables)
    printed = subprocess.run([path, "nnUNet_extTrainer"], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["3", "/a b", "/folder"]
    assert "/nowhere" not in path.read_text()


def test_versions_of_packages():
    assert installed("torch")[0].isdigit()
    assert installed("no-such-package") == "not installed"
