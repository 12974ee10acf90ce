"""What of the plans must stay the same between the folds of a model, and what may change."""

import json
from copy import deepcopy

import pytest

from nnunetv2_swinfuse.training.processing import preprocessing_of, processing_differences, processing_of

CT = {"mean": 40.0, "std": 20.0, "percentile_00_5": -50.0, "percentile_99_5": 250.0, "median": 38.0, "max": 900.0}
MR = {"mean": 300.0, "std": 100.0, "percentile_00_5": 5.0, "percentile_99_5": 900.0, "median": 280.0, "max": 2000.0}
PLANS = {
    "plans_name": "nnUNetPlans",
    "transpose_forward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "foreground_intensity_properties_per_channel": {"0": CT, "1": MR},
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "spacing": [1.0, 1.0, 1.0],
            "patch_size": [64, 64, 64],
            "batch_size": 2,
            "median_image_size_in_voxels": [100, 100, 100],
            "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
            "use_mask_for_norm": [False, False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"is_seg": False, "order": 3},
            "architecture": {},
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
}


def changed(configuration="3d_fullres", intensities=(), **values):
    """The plans with other values of a configuration, and of (channel, name)."""
    plans = deepcopy(PLANS)
    plans["configurations"][configuration].update(values)
    for channel, name, value in intensities:
        plans["foreground_intensity_properties_per_channel"][channel][name] = value
    return plans


def differences(plans, configuration="3d_fullres"):
    return processing_differences(processing_of(PLANS, configuration), processing_of(plans, configuration))


@pytest.mark.parametrize(
    ("plans", "expected"),
    [
        (changed(spacing=[4, 2, 2]), "spacing was [1.0, 1.0, 1.0], is [4, 2, 2]"),
        (changed(patch_size=[32, 96, 96]), "patch_size was [64, 64, 64], is [32, 96, 96]"),
        (changed(use_mask_for_norm=[False, True]), "use_mask_for_norm was [False, False], is [False, True]"),
        (
            changed(resampling_fn_data_kwargs={"is_seg": False, "order": 1}),
            "resampling_fn_data_kwargs.order was 3, is 1",
        ),
        (
            changed(intensities=[("0", "std", 300.0)]),
            "foreground_intensity_properties_per_channel.0.std was 20.0, is 300.0",
        ),
        ({**PLANS, "transpose_forward": [2, 0, 1]}, "transpose_forward was [0, 1, 2], is [2, 0, 1]"),
        ({**PLANS, "image_reader_writer": "NibabelIO"}, "image_reader_writer was SimpleITKIO, is NibabelIO"),
    ],
)
def test_what_changes_a_prediction_is_named(plans, expected):
    assert differences(plans) == [expected]
    # A configuration that inherits it changes too.
    assert differences(plans, "3d_cascade_fullres") == [expected]


@pytest.mark.parametrize(
    "plans",
    [
        changed(
            batch_size=4, median_image_size_in_voxels=[90, 90, 90], data_identifier="nnUNetSwinFUSEPlans_3d_fullres"
        ),
        changed(spacing=(1, 1, 1), patch_size=(64, 64, 64)),
        # Neither is read by the scheme of its channel; rounding.
        changed(intensities=[("0", "max", 1000.0), ("1", "std", 120.0), ("0", "mean", 40.0000001)]),
        changed("3d_cascade_fullres", spacing=[2, 2, 2]),
        {**PLANS, "plans_name": "other", "continue_training": True},
    ],
)
def test_what_does_not_is_accepted(plans):
    assert differences(plans) == []


def test_a_scheme_of_the_user_may_read_all_intensities():
    plans = changed(normalization_schemes=["CTNormalization", "MyNormalization"])
    before = processing_of(plans, "3d_fullres")
    plans["foreground_intensity_properties_per_channel"]["1"]["median"] = 1.0
    assert len(processing_differences(before, processing_of(plans, "3d_fullres"))) == 1


def test_another_first_stage_is_named():
    plans = changed("3d_cascade_fullres", previous_stage="3d_low")
    assert differences(plans, "3d_cascade_fullres") == ["previous_stage was 3d_lowres, is 3d_low"]


def test_a_record_on_disk_compares_as_the_plans_do():
    record = json.loads(json.dumps(processing_of(PLANS, "3d_fullres")))
    assert processing_differences(record, processing_of(PLANS, "3d_fullres")) == []
    del record["spacing"]
    # As of an earlier version.
    assert processing_differences(record, processing_of(changed(spacing=[2, 2, 2]), "3d_fullres")) == []


def test_preprocessed_data_depend_on_neither_patch_nor_network():
    block = PLANS["configurations"]["3d_fullres"]
    assert preprocessing_of(PLANS, block) == preprocessing_of(
        PLANS, {**block, "patch_size": [8] * 3, "architecture": 1}
    )
    assert preprocessing_of(PLANS, block) != preprocessing_of(PLANS, {**block, "spacing": [2, 2, 2]})
