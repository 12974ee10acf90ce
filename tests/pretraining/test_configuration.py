import json

import pytest

from pretraining.configuration import Configuration, changed_settings, load_preset, preset_names
from pretraining.errors import InputError

from .made import tiny


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop_size": (16, 16, 20)}, "y equal to x"),
        ({"crop_size": (18, 16, 16)}, "axis z has 18 voxels"),
        ({"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))}, "at most 3 strides"),
        ({"strides": ((1, 1, 1), (3, 3, 3))}, "expected 1 or 2"),
        ({"num_heads": (5,)}, r"num_heads\[0\] is 5"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"single_share": 1.5}, "single_share is 1.5; expected between 0 and 1"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing is"),
        ({"dim": "both"}, "dim is both"),
        (
            {"inpainting_weight": 0, "contrastive_weight": 0, "rotation_weight": 0, "density_weight": 0},
            "all loss weights",
        ),
    ],
)
def test_bad_settings_say_what_was_expected(changes, words):
    with pytest.raises(InputError, match=words):
        tiny(**changes)


def test_unknown_settings_and_presets_are_named():
    with pytest.raises(InputError, match=r"unknown settings \['step'\]"):
        Configuration.from_dict({"step": 3})
    with pytest.raises(InputError, match=r"preset 'huge' is not known.*base"):
        load_preset("huge")


def test_only_settings_that_change_the_result_stand_in_the_way_of_going_on():
    assert changed_settings(tiny(), tiny(workers=3, checkpoint_every=1)) == []
    assert changed_settings(tiny(), tiny(seed=1)) == ["seed: 0 in the run, 1 now"]
