import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.configuration import Configuration
from pretraining.preset_files import load_preset, preset_names, recipe_names


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
    "dim_layers", "dim_max_cells", "warmup_steps", "learning_rate", "weight_decay", "workers", "checkpointing",
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
    neither = settings("no_dim_no_density")
    assert (neither.encoder_settings.domain_invariance, neither.density_weight) == (None, 0)
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


def test_unknown_presets_and_recipes_are_named():
    with pytest.raises(InputError, match=r"preset 'huge' is not known.*base"):
        load_preset("huge")
    with pytest.raises(InputError, match=r"recipe 'mae' is not known.*simmim"):
        load_preset("tiny", "mae")
