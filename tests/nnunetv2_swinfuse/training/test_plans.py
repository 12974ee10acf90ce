import json
from copy import deepcopy

import pytest

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import load_encoder
from nnunetv2_swinfuse.architecture.registry import NETWORK_NAMES, build_network, planned_settings
from nnunetv2_swinfuse.architecture.transfer import transfer_encoder
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from nnunetv2_swinfuse.training.planned_network import PlansError
from nnunetv2_swinfuse.training.plans import plan_training

from .workshop import PLAIN, SETTINGS, publish_encoder


@pytest.fixture
def plans(published):
    return json.loads((published.preprocessed / PLAIN / "nnUNetPlans.json").read_text())


def block_of(plans, configuration="3d_fullres"):
    return plans["configurations"][configuration]


def test_sizes_are_the_encoders_strides_and_kernels_the_plans(plans, tmp_path, published):
    before = deepcopy(block_of(plans)["architecture"]["arch_kwargs"])
    planned = plan_training(plans, "3d_fullres", tmp_path, pretrained=True)
    architecture = block_of(plans)["architecture"]
    assert architecture["network_class_name"] == NETWORK_NAMES["swin"]
    assert architecture["_kw_requires_import"] == []
    assert architecture["arch_kwargs"]["strides"] == before["strides"]
    assert architecture["arch_kwargs"]["kernel_sizes"] == before["kernel_sizes"]
    assert planned_settings(architecture) == SETTINGS
    recorded = block_of(plans)["swinfuse"]
    assert recorded["encoder_sha256"] == planned.encoder.sha256
    assert recorded["encoder_source"] == planned.encoder.source
    assert recorded["collection"]["name"] == "Synthetic"
    assert recorded["training"] == planned.settings.to_dict()
    assert str(published.encoder) in planned.explanation
    json.dumps(plans)


def test_only_the_trained_configuration_is_rewritten(plans, tmp_path):
    before = deepcopy(plans)
    plan_training(plans, "3d_cascade_fullres", tmp_path, pretrained=True)
    assert block_of(plans) == block_of(before)
    assert block_of(plans, "3d_cascade_fullres")["previous_stage"] == "3d_lowres"
    assert block_of(plans, "3d_cascade_fullres")["architecture"]["network_class_name"] == NETWORK_NAMES["swin"]


def test_scratch_is_the_same_network_as_pretrained(plans, tmp_path):
    other = deepcopy(plans)
    plan_training(plans, "3d_fullres", tmp_path, pretrained=True)
    planned = plan_training(other, "3d_fullres", tmp_path, pretrained=False)
    assert block_of(other)["architecture"] == block_of(plans)["architecture"]
    assert "encoder_sha256" not in block_of(other)["swinfuse"]
    assert "sizes of" in planned.explanation


def test_a_trainers_own_default_gives_way_to_what_is_asked_for(plans, tmp_path, monkeypatch):
    def rate(**swinfuse):
        requested = deepcopy(plans)
        block_of(requested)["swinfuse"] = swinfuse
        planned = plan_training(requested, "3d_fullres", tmp_path, pretrained=False, defaults={"initial_lr": 3e-4})
        assert block_of(requested)["swinfuse"]["training"]["initial_lr"] == planned.settings.initial_lr
        return planned.settings.initial_lr

    assert rate() == 3e-4
    assert rate(training={"weight_decay": 0.1}) == 3e-4
    assert rate(training={"initial_lr": 2e-4}) == 2e-4
    monkeypatch.setenv("SWINFUSE_INITIAL_LR", "1e-4")
    assert rate(training={"initial_lr": 2e-4}) == 1e-4


def test_a_trainers_own_default_holds_in_plans_for_this_network(plans, tmp_path):
    plan_training(plans, "3d_fullres", tmp_path, pretrained=True)
    del block_of(plans)["swinfuse"]
    planned = plan_training(plans, "3d_fullres", tmp_path, pretrained=False, defaults={"initial_lr": 3e-4})
    assert "which are for SwinFUSE" in planned.explanation
    assert planned.settings.initial_lr == 3e-4


def test_scratch_needs_no_encoder(plans, tmp_path, published):
    published.encoder.unlink()
    planned = plan_training(plans, "3d_fullres", tmp_path, pretrained=False)
    assert block_of(plans)["architecture"]["arch_kwargs"]["feature_size"] == EncoderSettings().feature_size
    assert "default sizes" in planned.explanation
    with pytest.raises(EncoderChoiceError):
        plan_training(plans, "3d_fullres", tmp_path, pretrained=True)


def test_plans_made_for_the_network_keep_its_sizes(plans, tmp_path, monkeypatch):
    plan_training(plans, "3d_fullres", tmp_path, pretrained=True)
    kwargs = block_of(plans)["architecture"]["arch_kwargs"]
    kwargs |= {"stem_features": 5, "drop_path_rate": 0.25}
    # The record of where such plans come from is no request.
    del block_of(plans)["swinfuse"]["training"]
    planned = plan_training(plans, "3d_fullres", tmp_path, pretrained=True)
    assert block_of(plans)["architecture"]["arch_kwargs"] == kwargs
    assert planned.settings.drop_path_rate == block_of(plans)["swinfuse"]["training"]["drop_path_rate"] == 0.25
    monkeypatch.setenv("SWINFUSE_DROP_PATH_RATE", "0")
    del block_of(plans)["swinfuse"]["training"]
    assert plan_training(plans, "3d_fullres", tmp_path, pretrained=True).settings.drop_path_rate == 0


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_network_is_as_wide_as_the_decoder_that_was_pretrained_with_its_encoder(plans, tmp_path, pretrained):
    # As written by versions whose stem had half the feature size; the twin from random weights is no wider.
    path, stock = tmp_path / "whole.pth", deepcopy(plans)
    publish_encoder(path, whole=True, stem_features=3)
    block_of(plans)["swinfuse"] = {"encoder": str(path)}
    plan_training(plans, "3d_fullres", tmp_path, pretrained=pretrained)
    architecture = block_of(plans)["architecture"]
    assert architecture["arch_kwargs"]["stem_features"] == 3
    report = transfer_encoder(build_network(architecture, 1, 3), load_encoder(path), decoder=True)
    assert all("seg_layers" in name for name in report.fresh)
    block_of(stock)["swinfuse"] = {"encoder": str(path), "training": {"pretrained_decoder": 0}}
    plan_training(stock, "3d_fullres", tmp_path, pretrained=pretrained)
    assert block_of(stock)["architecture"]["arch_kwargs"]["stem_features"] > 3


def test_the_plan_may_name_an_encoder_and_settings(plans, tmp_path):
    publish_encoder(tmp_path / "mine.pth", seed=5)
    block_of(plans)["swinfuse"] = {"encoder": str(tmp_path / "mine.pth"), "training": {"initial_lr": 5e-5}}
    planned = plan_training(plans, "3d_fullres", tmp_path, pretrained=True)
    assert planned.encoder.path == str(tmp_path / "mine.pth")
    assert planned.settings.initial_lr == 5e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": [24, 24]}, r"3d_fullres has the patch size \[24, 24\]: SwinFUSE is for 3d"),
        ({"patch_size": [24, 24, 23]}, "axis x has 23 voxels.*use a multiple of 4"),
        ({"swinfuse": {"encoders": "x"}}, r"unknown keys \['encoders'\] in 'swinfuse'"),
        (
            {"architecture": {"network_class_name": "foreign.Net", "arch_kwargs": {}, "_kw_requires_import": []}},
            "foreign.Net has no 'strides'",
        ),
    ],
)
def test_impossible_plans_are_refused(plans, tmp_path, change, message):
    block_of(plans).update(change)
    with pytest.raises(ValueError, match=message):
        plan_training(plans, "3d_fullres", tmp_path, pretrained=True)


def test_nnunets_own_2d_configuration_is_refused(plans, tmp_path):
    with pytest.raises(ValueError, match="SwinFUSE is for 3d configurations"):
        plan_training(plans, "2d", tmp_path, pretrained=True)


def test_a_trained_model_decides_whatever_was_published_since(plans, tmp_path, published):
    first = deepcopy(plans)
    plan_training(first, "3d_fullres", tmp_path, pretrained=True)
    (tmp_path / "plans.json").write_text(json.dumps(first))
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_best.pth").touch()
    publish_encoder(published.encoder, seed=1, settings=EncoderSettings(**{**SETTINGS.to_dict(), "feature_size": 24}))
    planned = plan_training(plans, "3d_fullres", tmp_path, pretrained=True)
    assert planned.encoder is None
    assert block_of(plans) == block_of(first)
    assert str(tmp_path / "plans.json") in planned.explanation
    (tmp_path / "plans.json").write_text("{")
    with pytest.raises(ValueError, match=r"plans.json: its folds .fold_0. were trained with it, but it is damaged"):
        plan_training(plans, "3d_fullres", tmp_path, pretrained=True)


@pytest.fixture
def model(plans, tmp_path):
    """A model folder whose first fold was trained with the plans as they are."""
    first = deepcopy(plans)
    plan_training(first, "3d_fullres", tmp_path, pretrained=True)
    (tmp_path / "plans.json").write_text(json.dumps(first))
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_final.pth").touch()
    return tmp_path


def test_plans_that_process_images_otherwise_than_the_trained_folds_are_refused(plans, model):
    block_of(plans).update(spacing=[4.0, 2.0, 2.0], patch_size=[8, 24, 24], normalization_schemes=["CTNormalization"])
    with pytest.raises(
        PlansError, match=r"plans.json: its folds .fold_0. were trained with other plans than nnUNetPlans"
    ) as error:
        plan_training(plans, "3d_fullres", model, pretrained=True)
    for part in ("spacing was ", "is [4.0, 2.0, 2.0]", "patch_size was", "-overwrite_plans_name NAME", str(model)):
        assert part in str(error.value)
    (model / "fold_0" / "checkpoint_final.pth").unlink()
    plan_training(plans, "3d_fullres", model, pretrained=True)


def test_other_intensities_of_ct_are_refused_and_of_mr_are_not(plans, model):
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    properties["std"] *= 15
    plan_training(deepcopy(plans), "3d_fullres", model, pretrained=True)
    trained = json.loads((model / "plans.json").read_text())
    for content in (trained, plans):
        block_of(content)["normalization_schemes"] = ["CTNormalization"]
    (model / "plans.json").write_text(json.dumps(trained))
    with pytest.raises(PlansError, match=r"per_channel\.0\.std was"):
        plan_training(plans, "3d_fullres", model, pretrained=True)


def test_a_trained_model_accepts_another_batch_size_and_inherited_values(plans, model):
    configurations = plans["configurations"]
    configurations["parent"] = {**configurations.pop("3d_fullres"), "batch_size": 7}
    configurations["3d_fullres"] = {"inherits_from": "parent"}
    planned = plan_training(plans, "3d_fullres", model, pretrained=True)
    assert "network as in" in planned.explanation
