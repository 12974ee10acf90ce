"""What nnU-Net finds, as JSON. Run as a script by the Python of an environment, not by the one that tests.

Usage: python lookup.py [--spawn] TRAINER...
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import multiprocessing
import os
import pkgutil
import sys
from importlib import import_module, metadata
from importlib.util import find_spec

DISTRIBUTIONS = ("nnunetv2", "nnunetv2-swinfuse")


def find(name: str) -> type | None:
    """The trainer of this name, as nnUNetv2_train finds it; None when it says that there is none."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return recursive_find_trainer_class_by_name(name)
        except RuntimeError as error:
            if "Could not find requested nnunet trainer" not in str(error):
                raise
            return None


def module_of(name: str) -> str | None:
    """The module that defines the trainer of this name; None when it is not found."""
    trainer = find(name)
    return None if trainer is None else trainer.__module__


def stock_trainers() -> list[str]:
    """The names of all trainers that nnunetv2 itself defines."""
    package = import_module("nnunetv2.training.nnUNetTrainer")
    base = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    names = set()
    for _, module_name, is_package in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not is_package:
            classes = inspect.getmembers(import_module(module_name), inspect.isclass)
            names |= {name for name, found in classes if issubclass(found, base) and found.__module__ == module_name}
    return sorted(names)


def main() -> None:
    """Prints one line of JSON after whatever nnU-Net prints."""
    names = [argument for argument in sys.argv[1:] if argument != "--spawn"]
    variable = os.environ.get("nnUNet_extTrainer")
    found = {name: module_of(name) for name in names}
    stock = stock_trainers()
    answer = {
        "variable": variable,
        "found": found,
        "stock": len(stock),
        # A class that a module only imports from elsewhere has that other module.
        "stock_missing": [name for name in stock if not (module_of(name) or "").startswith("nnunetv2.")],
        "nnunetv2": import_module("nnunetv2").__file__,
        "swinfuse": getattr(find_spec("nnunetv2_swinfuse"), "origin", None),
        "versions": {name: metadata.version(name) for name in DISTRIBUTIONS if list(metadata.distributions(name=name))},
        "spawned": None,
    }
    if "--spawn" in sys.argv:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            answer["spawned"] = dict(zip(names, pool.map(module_of, names), strict=True))
    print(f"LOOKUP {json.dumps(answer)}")


if __name__ == "__main__":
    main()
