"""Presets and recipes, the JSON files in `presets/`: settings that differ from the defaults of the configuration."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from nnunetv2_swinfuse.errors import InputError


def preset_names() -> list[str]:
    """Names of the presets that come with the package: sizes and lengths."""
    return _names("presets")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package: what is learned. Each works with each preset."""
    return _names("presets/recipes")


def load_preset(name: str, recipe: str = "swinfuse") -> dict[str, Any]:
    """The settings that a preset and a recipe change, including `preset` and `recipe`.

    Raises:
        InputError: for an unknown name; lists the known ones.
    """
    settings = {**_load("presets", name, "preset"), **_load("presets/recipes", recipe, "recipe")}
    return {"preset": name, "recipe": recipe, **settings}


def _names(folder: str) -> list[str]:
    files = (resources.files("pretraining") / folder).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


def _load(folder: str, name: str, kind: str) -> dict[str, Any]:
    if name not in _names(folder):
        raise InputError(f"{kind} {name!r} is not known; expected one of {_names(folder)}")
    return json.loads((resources.files("pretraining") / folder / f"{name}.json").read_text())
