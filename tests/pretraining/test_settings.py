from dataclasses import fields

from pretraining.settings import GROUPS, LISTS_OF_CHOICES, LOSS_WEIGHTS, Settings, setting_choices


def test_choices_come_from_the_types_of_the_settings():
    choices = setting_choices()
    assert choices["backbone"] == ("swin", "resenc")
    assert choices["tasks"] == ("inpainting", "contrastive", "rotation")
    assert "steps" not in choices


def test_every_setting_has_a_group_and_a_help_text():
    for field in fields(Settings):
        assert field.metadata["group"] in GROUPS
        assert len(field.metadata["help"].split()) >= 3, field.name
    order = [
        GROUPS.index(field.metadata["group"]) for field in fields(Settings) if field.name not in ("preset", "recipe")
    ]
    assert order == sorted(order)


def test_weights_and_lists_name_settings():
    defaults = {field.name: field.default for field in fields(Settings)}
    assert all(isinstance(defaults[name], float) for name in LOSS_WEIGHTS.values())
    assert set(LISTS_OF_CHOICES) <= set(setting_choices())
    assert all(set(defaults[name]) <= set(setting_choices()[name]) for name in LISTS_OF_CHOICES)
