import json

import pytest

from nnunetv2_swinfuse.training.settings import FineTuningSettings, recorded_settings, requested_settings


def test_variables_override_the_plan_and_the_plan_the_defaults():
    requested = requested_settings(
        {"initial_lr": 3e-4, "weight_decay": 0.1}, {"SWINFUSE_INITIAL_LR": "2e-4", "SWINFUSE_WARMUP_EPOCHS": "7"}
    )
    assert requested == {"initial_lr": 2e-4, "weight_decay": 0.1, "warmup_epochs": 7}
    assert FineTuningSettings(**requested).gradient_clip == FineTuningSettings().gradient_clip


def test_settings_survive_json():
    settings = FineTuningSettings(initial_lr=2e-5, warmup_epochs=3)
    assert FineTuningSettings(**json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("planned", "environment", "message"),
    [
        ({"learning_rate": 1}, {}, r"unknown keys \['learning_rate'\] in 'swinfuse.training'; known are .*initial_lr"),
        ({}, {"SWINFUSE_LR": "1"}, "SWINFUSE_LR is no setting; known are .*SWINFUSE_INITIAL_LR"),
        ({}, {"SWINFUSE_INITIAL_LR": "fast"}, "SWINFUSE_INITIAL_LR is 'fast'; expected a float"),
        ({}, {"SWINFUSE_ITERATIONS_PER_EPOCH": "2.5"}, "expected a int, such as 250"),
    ],
)
def test_what_is_not_known_is_named(planned, environment, message):
    with pytest.raises(ValueError, match=message):
        requested_settings(planned, environment)


def test_the_encoders_variable_is_no_setting():
    assert requested_settings({}, {"SWINFUSE_CHECKPOINT": "encoder.pth", "OTHER": "1"}) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_lr": 0.0},
        {"initial_lr": float("nan")},
        {"weight_decay": -0.1},
        {"drop_path_rate": 1.0},
        {"iterations_per_epoch": 2.5},
        {"iterations_per_epoch": True},
        {"gradient_clip": "1"},
        {"gradient_clip": None},
        {"warmup_epochs": -1},
        {"layer_decay": 0.0},
        {"dim_scale": -0.1},
        {"random_contrast": 1.1},
        {"layer_decay": 1.1},
        {"linear_probe_epochs": -1},
    ],
)
def test_impossible_values_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FineTuningSettings(**wrong)


def test_warmup_is_five_percent_at_most_fifty_epochs():
    settings = FineTuningSettings()
    assert [settings.warmup_length(epochs) for epochs in (1, 5, 100, 1000, 4000)] == [0, 1, 5, 50, 50]
    assert FineTuningSettings(warmup_epochs=3).warmup_length(5) == 3
    with pytest.raises(ValueError, match="warmup_epochs is 5, the training has 5"):
        FineTuningSettings(warmup_epochs=5).warmup_length(5)


def test_a_model_keeps_the_settings_it_was_trained_with():
    recorded = FineTuningSettings(initial_lr=3e-4).to_dict()
    assert recorded_settings(recorded, {}, "plans.json").initial_lr == 3e-4
    assert recorded_settings(recorded, {"initial_lr": 3e-4}, "plans.json").initial_lr == 3e-4
    with pytest.raises(ValueError, match=r"initial_lr is 0.0001 now, 0.0003 in plans.json.*Unset the SWINFUSE_"):
        recorded_settings(recorded, {"initial_lr": 1e-4}, "plans.json")
    with pytest.raises(ValueError, match="another version"):
        recorded_settings({**recorded, "momentum": 0.9}, {}, "plans.json")


def test_models_of_before_layer_decay_keep_one_rate():
    recorded = FineTuningSettings().to_dict()
    del recorded["layer_decay"]
    assert recorded_settings(recorded, {}, "plans.json").layer_decay == 1


def test_linear_probing_leaves_epochs_to_train_everything():
    assert FineTuningSettings(linear_probe_epochs=4).warmup_length(5) == 1
    with pytest.raises(ValueError, match=r"linear_probe_epochs is 5, the training has 5.*nnUNetTrainerSwinFUSEFrozen"):
        FineTuningSettings(linear_probe_epochs=5).warmup_length(5)
    with pytest.raises(ValueError, match=r"warmup_epochs is 2, the training has 5.*3 of them linear_probe_epochs"):
        FineTuningSettings(linear_probe_epochs=3, warmup_epochs=2).warmup_length(5)
