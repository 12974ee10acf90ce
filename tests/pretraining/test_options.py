import argparse
from dataclasses import fields

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.configuration import Configuration
from pretraining.options import build_parser, read_identifiers, setting_overrides

from .synthetic import TINY, tiny, tiny_arguments


def test_every_option_is_explained():
    actions = [action for action in build_parser()._actions if not isinstance(action, argparse._HelpAction)]
    assert len(actions) > len(fields(Configuration))
    for action in actions:
        assert action.help, action.option_strings
    # Formats every help text: a single % would fail.
    assert "learning rate of AdamW" in " ".join(build_parser().format_help().split())


def test_every_setting_is_an_option_but_preset_and_recipe():
    options = {word for action in build_parser()._actions for word in action.option_strings}
    names = {field.name for field in fields(Configuration)} - {"preset", "recipe"}
    assert {f"--{name}" for name in names} <= options


def test_only_settings_on_the_command_line_override_the_preset():
    parser = build_parser()
    assert setting_overrides(parser.parse_args(["-d", "A"])) == {}
    overrides = setting_overrides(parser.parse_args(["-d", "A", *tiny_arguments()]))
    assert overrides.keys() == TINY.keys()
    assert Configuration.from_dict(overrides) == tiny()
    options = parser.parse_args(["--no-quarter_turns", "--tasks", "rotation", "inpainting", "--spacing", "2", "1", "1"])
    assert setting_overrides(options) == {
        "quarter_turns": False, "tasks": ["rotation", "inpainting"], "spacing": [2.0, 1.0, 1.0]
    }  # fmt: skip


@pytest.mark.parametrize("words", [["--fusion", "max"], ["--tasks", "density"], ["--modalities", "PET"]])
def test_other_choices_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(words)
    assert "invalid choice" in capsys.readouterr().err


def test_identifiers_are_read_from_the_lines_of_a_file(tmp_path):
    path = tmp_path / "test_cases.txt"
    with pytest.raises(InputError, match=r"test_cases\.txt: cannot be read"):
        read_identifiers(path)
    path.write_text("\n \n")
    with pytest.raises(InputError, match="no identifiers in it; expected one a line"):
        read_identifiers(path)
    path.write_text("Dataset510_AbdomenMR/case 1\r\n\n b \n")
    assert read_identifiers(path) == ["Dataset510_AbdomenMR/case 1", "b"]
