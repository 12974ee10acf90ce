from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunetv2_swinfuse.architecture.operations import swin_operations
from nnunetv2_swinfuse.benchmark import forecast as module
from nnunetv2_swinfuse.benchmark.arms import resolve_arm
from nnunetv2_swinfuse.benchmark.experiment import Length
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.forecast import (
    UnknownCostError,
    arm_operations,
    count_operations,
    forecast,
    training_operations,
)
from nnunetv2_swinfuse.benchmark.swin_unetr import PaddedSwinUNETR

from .runners import make_runner
from .tables import DATASET, result_of

pytestmark = pytest.mark.slow

LENGTH = {"epochs": 2, "iterations": 3, "validation_iterations": 1}
CONVOLUTIONS = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
PLANS = {
    "dataset_name": DATASET,
    "plans_name": "nnUNetPlans",
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "configurations": {
        "3d_fullres": {
            "patch_size": [16, 16, 16],
            "batch_size": 2,
            "spacing": [1.0, 1.0, 1.0],
            "architecture": {
                "network_class_name": CONVOLUTIONS,
                "arch_kwargs": {
                    "n_stages": 2, "features_per_stage": [4, 8], "conv_op": "torch.nn.modules.conv.Conv3d",
                    "kernel_sizes": [[3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [2, 2, 2]],
                    "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                    "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        }
    },
}  # fmt: skip
# By hand: per voxel 2 x 27 x in x out. Encoder 1 -> 4 at 16³, 4 -> 8 at 8³; transposed convolution 8 -> 4 from 8³ with
# 8 weights each; decoder 8 -> 4 and head 4 -> 3 at 16³.
UNET = 16**3 * (54 * 1 * 4 + 54 * 8 * 4 + 2 * 4 * 3) + 8**3 * (54 * 4 * 8 + 2 * 8 * 8 * 4)


@pytest.fixture
def planned(raw, tmp_path):
    """A runner whose dataset has plans for nnU-Net's default network."""
    pretraining = {"collections": ["Pairs"], "preset": "tiny", "steps": 5}
    arms = ["nnunet", "resenc_m", "swinfuse", {"name": "other", "trainer": "nnUNetTrainerDA5"}]
    runner = make_runner(tmp_path, arms=arms, seeds=[0, 1], length=LENGTH, pretraining=pretraining)
    write_json(runner.workspace.preprocessed / DATASET / "nnUNetPlans.json", PLANS)
    return runner


def operations(runner, arm):
    return arm_operations(runner.experiment, runner.workspace, runner.experiment.arm(arm), runner.datasets[DATASET])


def forecast_of(runner, results):
    return forecast(runner.experiment, runner.workspace, runner.datasets, runner.cells, results)


def test_operations_of_a_training_count_backward_passes_twice():
    # 2 epochs of 3 steps (forward and backward) and 1 validation pass, each of 4 patches.
    assert training_operations(10.0, 4, Length(2, 3, 1)) == 10 * 4 * 2 * (3 * 3 + 1)


def test_a_convolution_is_counted_without_computing_it():
    with torch.device("meta"):
        network = nn.Conv3d(2, 5, 3, padding=1)
    assert count_operations(network, (1, 2, 100, 100, 100), "meta") == 2 * 27 * 2 * 5 * 100**3


def test_nnunets_network_is_counted_from_its_plans(planned):
    assert operations(planned, "nnunet") == training_operations(UNET, 2, Length(**LENGTH))


def test_a_network_of_the_presets_sizes_before_the_pretraining(planned):
    counted = operations(planned, "swinfuse") / training_operations(1, 2, Length(**LENGTH))
    # Of the preset `tiny`: 24 features in 8³ tokens, 2 blocks in the only stage, windows of 4.
    assert counted > swin_operations((8, 8, 8), [(1, 1, 1)], 24, [2], 4, 4.0)


def test_swin_unetr_costs_as_its_padded_voxels(planned):
    # A patch of 16³ is padded to 32³.
    whole = count_operations(PaddedSwinUNETR(1, 3), (1, 1, 64, 64, 64), "cpu")
    arm = resolve_arm("swin_unetr")
    counted = arm_operations(planned.experiment, planned.workspace, arm, planned.datasets[DATASET])
    assert counted == pytest.approx(training_operations(whole / 8, 2, Length(**LENGTH)))


@pytest.mark.parametrize(
    ("arm", "reason"), [("resenc_m", "not planned yet"), ("other", "nnUNetTrainerDA5 is not known")]
)
def test_what_is_not_known_is_said(planned, arm, reason):
    with pytest.raises(UnknownCostError, match=reason):
        operations(planned, arm)


def test_other_kinds_are_estimated_at_the_rate_of_finished_cells(planned):
    first = next(cell for cell in planned.cells if cell.arm == "swinfuse")
    cost = {**result_of(first)["cost"], "flops_per_patch": 1e6, "batch_size": 2}
    results = {first.name: result_of(first, seconds=50.0, cost=cost, length=LENGTH)}
    outlook = forecast_of(planned, results)
    kind = ("nnunet", DATASET)
    assert outlook.waiting[kind] == 2
    assert outlook.waiting["swinfuse", DATASET] == 1
    assert outlook.measured == {("swinfuse", DATASET): 50.0}
    assert outlook.estimated[kind] == pytest.approx(50 * UNET / 1e6)
    assert "not planned yet" in outlook.unknown["resenc_m", DATASET]
    assert outlook.seconds == pytest.approx(2 * outlook.estimated[kind] + 50 + outlook.pretraining["swinfuse"])


def test_before_the_first_cell_the_machines_speed_is_measured(planned, monkeypatch):
    module._measured_rate.cache_clear()
    monkeypatch.setattr("pretraining.run_time.device_speed", lambda device: 1e9)
    monkeypatch.setattr("pretraining.run_time.EFFICIENCY", 0.5)
    outlook = forecast_of(planned, {})
    module._measured_rate.cache_clear()
    assert outlook.estimated["nnunet", DATASET] == pytest.approx(operations(planned, "nnunet") / 0.5e9)


def test_without_the_experiments_gpu_nothing_is_estimated(planned, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    planned.experiment = replace(planned.experiment, device="cuda")
    outlook = forecast_of(planned, {})
    assert not outlook.estimated
    assert "no GPU here" in outlook.unknown["nnunet", DATASET]
    assert outlook.pretraining == {"swinfuse": None}


def test_a_pretraining_that_is_done_costs_nothing(planned):
    (run,) = planned.experiment.pretraining_runs
    write_json(planned.workspace.pretraining(run) / "encoder.json", {"path": "gone.pth"})
    assert forecast_of(planned, {}).pretraining == {}
    budget = replace(planned.experiment.pretraining, steps=None, minutes=2.0)
    planned.experiment = replace(planned.experiment, pretraining=budget)
    planned.workspace.pretraining(run).joinpath("encoder.json").unlink()
    assert forecast_of(planned, {}).pretraining == {"swinfuse": 120.0}


def test_an_encoder_has_the_sizes_of_its_arms_settings(planned):
    before = operations(planned, "swinfuse")
    small = resolve_arm({"name": "small", "like": "swinfuse", "pretraining": {"feature_size": 12}})
    planned.experiment = replace(planned.experiment, arms=(*planned.experiment.arms, small))
    assert operations(planned, "small") < before
    assert set(forecast_of(planned, {}).pretraining) == {"swinfuse", "swinfuse__feature_size_12"}
    of_plans = resolve_arm({"name": "plans", "like": "swinfuse", "pretraining": {"for": [901]}})
    planned.experiment = replace(planned.experiment, arms=(*planned.experiment.arms, of_plans))
    assert forecast_of(planned, {}).pretraining["swinfuse__for_901"] is None
    with pytest.raises(UnknownCostError, match="sizes are not known before it is pretrained: --prepare_only"):
        operations(planned, "plans")


def test_pretrainings_of_the_same_cost_are_told_the_same(planned):
    budget = replace(planned.experiment.pretraining, per_seed=True)
    planned.experiment = replace(planned.experiment, pretraining=budget, seeds=(0, 1))
    told = forecast_of(planned, {}).pretraining
    assert set(told) == {"swinfuse__seed_0", "swinfuse__seed_1"}
    assert len(set(told.values())) == 1
    assert told["swinfuse__seed_0"] > 0
