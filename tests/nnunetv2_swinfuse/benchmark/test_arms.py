import pytest

from nnunetv2_swinfuse.benchmark.arms import ARMS, DESCRIPTIONS, Arm, resolve_arm
from nnunetv2_swinfuse.errors import BenchmarkError
from pretraining.preset_files import recipe_names


@pytest.mark.parametrize("name", ["nnunet", "swin_unetr", "simmim"])
def test_known_arms_are_named(name):
    assert resolve_arm(name).name == name


def test_an_unknown_arm_lists_those_that_exist():
    with pytest.raises(BenchmarkError) as caught:
        resolve_arm("resenc")
    assert str(caught.value).startswith(f"no arm 'resenc'; there are {', '.join(ARMS)}.")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"name": "mine", "lr": 1}, "unknown fields lr; an arm has name, trainer"),
        ({"trainer": "nnUNetTrainer"}, "'name' is missing"),
        ({"name": "a__b"}, "single underscores"),
        ({"name": "mine", "planner": "Mine"}, "no planner 'Mine'; there are ExperimentPlanner"),
        ({"name": "mine", "like": "swinfuse", "encoder": "/none.pth"}, "/none.pth: no such encoder"),
        ({"name": "mine", "recipe": "ct", "encoder": "/none.pth"}, "a recipe or an encoder file, not both"),
        ({"name": "mine", "pretraining": {"dim": "none"}}, "'pretraining' changes a recipe; give 'recipe' too"),
        ({"name": "mine", "like": "none"}, "no arm 'none'"),
    ],
)
def test_bad_arms_say_what_exists(entries, message):
    with pytest.raises(BenchmarkError, match=message):
        resolve_arm(entries)


def test_an_arm_like_another_differs_in_what_is_named():
    arm = resolve_arm({"name": "slow", "like": "swinfuse", "settings": {"initial_lr": 1e-4}})
    assert arm == Arm("slow", ARMS["swinfuse"].trainer, recipe="swinfuse", settings={"initial_lr": 1e-4})
    assert arm.plans_name == "nnUNetPlans"
    assert ARMS["resenc_l"].plans_name == "nnUNetResEncUNetLPlans"


def test_known_arms_are_described_and_their_recipes_exist():
    assert set(ARMS) == set(DESCRIPTIONS)
    assert {arm.recipe for arm in ARMS.values() if arm.recipe} <= set(recipe_names())


def test_the_twin_differs_in_its_trainer_alone():
    twin, pretrained = ARMS["scratch"].to_dict(), ARMS["swinfuse"].to_dict()
    assert {name for name in twin if twin[name] != pretrained[name]} == {"name", "trainer"}
    assert ARMS["swinfuse"].pretrained
    assert not ARMS["scratch"].pretrained


def test_an_encoder_file_takes_the_place_of_the_recipe(tmp_path):
    file = tmp_path / "encoder.pth"
    file.touch()
    arm = resolve_arm({"name": "mine", "like": "swinfuse", "encoder": str(file)})
    assert (arm.recipe, arm.trainer, arm.encoder) == ("", "nnUNetTrainerSwinFUSE", str(file))


def test_records_of_arms_without_settings_of_pretraining_are_as_before_there_were_any():
    assert "pretraining" not in ARMS["swinfuse"].to_dict()
    arm = resolve_arm({"name": "small", "like": "swinfuse", "pretraining": {"feature_size": 8}})
    assert resolve_arm(arm.to_dict()) == arm
