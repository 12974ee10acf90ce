"""`python -m pretraining.settings_page`: writes docs/settings.md, the tables of all settings, from the code.

A test compares the file with the code.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pretraining.configuration import Configuration
from pretraining.options import NAMES
from pretraining.preset_files import load_preset, preset_names, recipe_names
from pretraining.settings import GROUPS, Settings, setting_choices

HEAD = """# Settings of pretraining

Every setting is an option of `swinfuse_pretrain`, such as `--steps 1000` or `--crop_size 64 64 64`, and stored in the
run's `configuration.json`. A preset (`-p`) sets sizes and length, a recipe (`--recipe`) what is learned; options on the
command line take precedence over both. Presets and recipes are described in [pretraining.md](pretraining.md).

This page is generated: `python -m pretraining.settings_page`.
"""


def settings_page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(f"## {group.capitalize()}\n\n{_settings(group)}" for group in GROUPS), _recipes()])


def _settings(group: str) -> str:
    """The table of a group of settings, with the values of all presets."""
    presets = {name: Configuration.from_dict(load_preset(name)).to_dict() for name in preset_names()}
    rows = [
        (f"`{field.name}`", *(_value(values[field.name]) for values in presets.values()), _explanation(field))
        for field in fields(Settings)
        if field.metadata["group"] == group and field.name not in NAMES
    ]
    return _table(("setting", *presets, "meaning"), rows)


def _recipes() -> str:
    """What each recipe changes, whatever the preset."""
    rows = []
    base = load_preset("base")
    for name in recipe_names():
        recipe = load_preset("base", name)
        changes = {key: value for key, value in recipe.items() if key not in NAMES and base.get(key) != value}
        rows.append((f"`{name}`", ", ".join(f"`{key}` {_value(value)}" for key, value in changes.items()) or "nothing"))
    return f"## Recipes\n\n{_table(('recipe', 'changes'), rows)}"


def _explanation(field: Any) -> str:
    choices = setting_choices().get(field.name)
    listing = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
    return field.metadata["help"] + listing


def _value(value: Any) -> str:
    """A value as it is written on the command line; an empty one as a hyphen."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "`" + json.dumps(value).replace(" ", "") + "`"
    if isinstance(value, list):
        return " ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.settings_page", description="Write docs/settings.md.")
    parser.add_argument(
        "file", type=Path, nargs="?", default=Path("docs/settings.md"), help="default: docs/settings.md"
    )
    parser.parse_args(arguments).file.write_text(settings_page())


if __name__ == "__main__":
    main()
