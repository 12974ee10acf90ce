import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.configuration import BEFORE, Configuration, changed_settings

from .nnunet_plans import CT
from .synthetic import tiny


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop_size": (16, 16, 20)}, "y equal to x"),
        ({"crop_size": (18, 16, 16)}, "axis z has 18 voxels"),
        ({"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))}, "at most 3 strides"),
        ({"strides": ((1, 1, 1), (3, 3, 3))}, "expected 1 or 2"),
        ({"num_heads": (5,)}, r"num_heads\[0\] is 5"),
        ({"backbone": "resenc", "depths": (2, 2), "num_heads": (2, 4)}, r"num_heads \[2, 4\].*--recipe resenc sets"),
        ({"backbone": "resnet"}, r"backbone is resnet; expected one of"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"batch_size": 1, "contrastive_loss": "adjusted_correlation"}, "batch_size is 1; expected at least 2 for adj"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"random_contrast": 1.5}, "random_contrast is 1.5; expected between 0 and 1"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing is"),
        ({"ct_intensities": {"mean": 1.0}}, "ct_intensities is {'mean': 1.0}; expected numbers for mean, median, std"),
        ({"ct_intensities": {**CT, "std": 0.0}}, "with std above 0"),
        ({"ct_intensities": {**CT, "percentile_99_5": -500.0}}, "the percentiles in order"),
        ({"ct_intensities": {**CT, "max": float("nan")}}, "ct_intensities is"),
        ({"ct_intensities": 3}, "ct_intensities is 3"),
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
        ({"density_levels": ()}, "density_levels is"),
        ({"partner": "pseudo_pair", "masking": "blocks"}, "pseudo-pairs need --masking cells"),
        ({"freeze_encoder": True, "tasks": ("contrastive",), "contrastive_loss": "vicreg"}, "expected False without"),
        ({"contrastive_loss": "vicreg", "variance_weight": 0.0}, "variance_weight is 0.0; expected more than 0"),
        (
            {"contrastive_loss": "correlation", "variance_weight": 0.0},
            "more than 0 with --contrastive_loss correlation",
        ),
        ({"intact_second_views": 1.5}, "intact_second_views is 1.5; expected between 0 and 1"),
        (
            {"dim": "none", "density_levels": ["paired"]},
            r"density_levels is \['paired'\]; expected one of \['single_image', 'stages'\].*or --density_weight 0",
        ),
        (
            {"mask_cell": 16},
            r"share is 0.6: .* crop of .16, 16, 16. voxels, in cells of .16, 16, 16. .* 1 of its 1 cells.*--mask_cell",
        ),
        ({"mask_cell": 8, "corrupted_share": 0.05}, r"are 0 of its 8 cells.*--corrupted_share"),
        ({"corrupted_share": 0.999}, r"are 64 of its 64 cells"),
        ({"second_view": "paired", "density_levels": ["single_image"]}, r"expected one of \['paired', 'stages'\]"),
    ],
)
def test_bad_settings_say_what_was_expected(changes, words):
    with pytest.raises(InputError, match=words):
        tiny(**changes)


def test_ct_intensities_survive_json():
    saved = tiny(ct_intensities={**CT, "count": 3})
    assert saved.ct_intensities == CT
    assert Configuration.from_dict(saved.to_dict()) == saved
    (change,) = changed_settings(tiny(), saved)
    assert change.startswith("ct_intensities: None in the run, {")


def test_a_plane_that_is_not_isotropic_is_not_turned():
    assert tiny().for_spacing((5.0, 1.0, 1.04)) == tiny(spacing=(5.0, 1.0, 1.04))
    distorted = tiny().for_spacing((1.0, 1.0, 1.5))
    assert not distorted.quarter_turns
    assert distorted.loss_weight("rotation") == 0 < distorted.loss_weight("inpainting")
    with pytest.raises(InputError, match=r"spacing is \[1.0, 1.0, 1.5\] mm.*the weight of rotation is 0.*--tasks"):
        tiny(tasks=("rotation",)).for_spacing((1.0, 1.0, 1.5))
    assert tiny(crop_size=(16, 16, 20), quarter_turns=False).crop_size == (16, 16, 20)


def test_unknown_settings_are_named():
    with pytest.raises(InputError, match=r"unknown settings \['step'\]"):
        Configuration.from_dict({"step": 3})


def test_only_settings_that_change_the_result_prevent_resuming():
    assert changed_settings(tiny(), tiny(workers=3, checkpoint_every=1)) == []
    assert changed_settings(tiny(), tiny(seed=1)) == ["seed: 0 in the run, 1 now"]


def test_cells_are_as_large_as_a_deepest_token_unless_their_side_is_set():
    assert tiny().mask_cells == (4, 4, 4)
    assert tiny(mask_cell=8).mask_cells == (8, 8, 8)
    anisotropic = tiny(strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    assert anisotropic.mask_cells == (2, 4, 4)
    # A crop of a single token.
    assert tiny(crop_size=(4, 4, 4)).mask_cells == (2, 2, 2)


def test_blocks_have_no_cells_to_be_too_few():
    assert tiny(masking="blocks", mask_cell=16).mask_cell == 16


def test_losses_that_need_two_modalities_or_the_module_are_left_out_without_them():
    losses = ("cross_modal", "density", "distillation")
    assert [tiny(distillation_weight=1.0).loss_weight(loss) for loss in losses] == [1, 1, 1]
    assert [tiny(distillation_weight=1.0, modalities=("CT",)).loss_weight(loss) for loss in losses] == [0, 0, 0]
    assert [tiny(distillation_weight=1.0, dim="none").loss_weight(loss) for loss in losses] == [1, 1, 0]


def test_runs_of_before_a_setting_keep_what_they_did():
    """Such a run is not resumed with today's defaults: they are refused as changes."""
    today = tiny()
    recorded = {name: value for name, value in today.to_dict().items() if name not in BEFORE}
    run = Configuration.of_run(recorded, "checkpoint")
    assert (run.compared_places, run.intact_second_views) == ("all", 0.0)
    assert Configuration.of_run(today.to_dict(), "checkpoint") == today
    assert [text.split(":")[0] for text in changed_settings(run, today)] == list(BEFORE)
    with pytest.raises(InputError, match="checkpoint: unknown settings"):
        Configuration.of_run({"colour": 1}, "checkpoint")
