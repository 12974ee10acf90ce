import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.configuration import Configuration, changed_settings
from pretraining.preset_files import load_preset, preset_names, recipe_names

from .synthetic import tiny


@pytest.mark.parametrize("name", ["base", "small", "tiny"])
def test_presets_are_valid_and_survive_json(name):
    configuration = Configuration.from_dict(load_preset(name))
    assert configuration.preset == name
    assert Configuration.from_dict(json.loads(json.dumps(configuration.to_dict()))) == configuration


def test_base_has_the_papers_sizes():
    base = Configuration.from_dict(load_preset("base"))
    assert (base.crop_size, base.feature_size, base.window_size) == ((96, 96, 96), 48, 7)
    assert (base.depths, base.num_heads) == ((2, 2, 2, 2), (3, 6, 12, 24))
    assert (base.steps, base.warmup_steps, base.learning_rate, base.weight_decay) == (100_000, 500, 4e-4, 0.1)
    assert preset_names() == ["base", "small", "tiny"]


SIZES = {
    "crop_size", "strides", "batch_size", "spacing", "feature_size", "depths", "num_heads", "window_size", "mlp_ratio",
    "dim_layers", "dim_max_tokens", "warmup_steps", "learning_rate", "weight_decay", "workers", "checkpointing",
}  # fmt: skip


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("preset", preset_names())
def test_every_recipe_goes_with_every_preset_and_leaves_its_sizes(preset, recipe):
    configuration = Configuration.from_dict(load_preset(preset, recipe))
    assert (configuration.preset, configuration.recipe) == (preset, recipe)
    ours = Configuration.from_dict(load_preset(preset)).to_dict()
    changed = {name for name, value in configuration.to_dict().items() if value != ours[name]} - {"recipe"}
    # Another backbone has sizes of its own.
    other = {"feature_size", "depths", "num_heads"} if "backbone" in changed else set()
    assert changed & SIZES == other
    assert bool(changed) == (recipe != "swinfuse")


def test_recipes_are_what_their_names_say():
    def settings(recipe):
        return Configuration.from_dict(load_preset("base", recipe))

    assert settings("ct").modalities == ("CT",)
    assert settings("inpainting").tasks == ("inpainting",)
    assert [settings("inpainting").loss_weight(task) for task in ("inpainting", "contrastive", "rotation")] == [1, 0, 0]
    assert settings("inpainting").loss_weight("cross_modal") == settings("ct").loss_weight("cross_modal") == 0
    assert settings("no_dim").encoder_settings.domain_invariance is None
    assert settings("no_density").density_weight == 0
    assert settings("mean").fusion == settings("paper").fusion == "mean"
    assert (settings("simmim").masking, settings("simmim").corrupted_share) == ("cells", 0.6)
    assert settings("none").steps == 0
    first = settings("inpainting_first")
    others = [first.loss_weight(loss) for loss in ("contrastive", "cross_modal", "rotation", "density")]
    assert first.loss_weight("inpainting") == 1 > max(others) >= min(others) > 0
    residual = settings("resenc").encoder_settings
    assert (residual.backbone, residual.feature_size, residual.depths) == ("resenc", 32, (1, 3, 4, 6, 6, 6))
    # The mean over the whole crop, as the released code takes it, up to a factor.
    paper = settings("paper")
    assert paper.visible_weight == pytest.approx((1 - paper.corrupted_share) / paper.corrupted_share, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop_size": (16, 16, 20)}, "y equal to x"),
        ({"crop_size": (18, 16, 16)}, "axis z has 18 voxels"),
        ({"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))}, "at most 3 strides"),
        ({"strides": ((1, 1, 1), (3, 3, 3))}, "expected 1 or 2"),
        ({"num_heads": (5,)}, r"num_heads\[0\] is 5"),
        ({"backbone": "resenc", "depths": (2, 2), "num_heads": (2, 4)}, r"num_heads \[2, 4\].*--recipe resenc sets"),
        ({"backbone": "resnet"}, r"backbone is 'resnet'; expected one of"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"single_share": 1.5}, "single_share is 1.5; expected between 0 and 1"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing is"),
        ({"dim": "both"}, "dim is both"),
        (
            {"inpainting_weight": 0, "contrastive_weight": 0, "rotation_weight": 0},
            "the weight of inpainting, contrastive, rotation",
        ),
        ({"tasks": ("rotation",), "rotation_weight": 0}, "the weight of rotation is 0"),
        ({"tasks": ()}, "tasks is"),
        ({"tasks": ("density",)}, r"tasks is \('density',\); expected one or several of"),
        ({"modalities": ("PET",)}, r"expected one or several of \['CT', 'MR'\]"),
        ({"density_loss": "kl"}, "density_loss is kl"),
    ],
)
def test_bad_settings_say_what_was_expected(changes, words):
    with pytest.raises(InputError, match=words):
        tiny(**changes)


def test_a_plane_that_is_not_isotropic_is_not_turned():
    assert tiny().for_spacing((5.0, 1.0, 1.04)) == tiny()
    distorted = tiny().for_spacing((1.0, 1.0, 1.5))
    assert not distorted.quarter_turns
    assert distorted.loss_weight("rotation") == 0 < distorted.loss_weight("inpainting")
    with pytest.raises(InputError, match=r"spacing is \[1.0, 1.0, 1.5\] mm.*the weight of rotation is 0.*--tasks"):
        tiny(tasks=("rotation",)).for_spacing((1.0, 1.0, 1.5))
    assert tiny(crop_size=(16, 16, 20), quarter_turns=False).crop_size == (16, 16, 20)


def test_unknown_settings_and_presets_are_named():
    with pytest.raises(InputError, match=r"unknown settings \['step'\]"):
        Configuration.from_dict({"step": 3})
    with pytest.raises(InputError, match=r"preset 'huge' is not known.*base"):
        load_preset("huge")
    with pytest.raises(InputError, match=r"recipe 'mae' is not known.*simmim"):
        load_preset("tiny", "mae")


def test_only_settings_that_change_the_result_stand_in_the_way_of_going_on():
    assert changed_settings(tiny(), tiny(workers=3, checkpoint_every=1)) == []
    assert changed_settings(tiny(), tiny(seed=1)) == ["seed: 0 in the run, 1 now"]
