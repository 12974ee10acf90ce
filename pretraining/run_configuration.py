"""The configuration of a run from the options of `swinfuse_pretrain`: that of a new run, or of one that is resumed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.nnunet_names import PREPROCESSED, STOCK_PLANS
from pretraining.configuration import Configuration, changed_settings
from pretraining.nnunet_paths import required_paths
from pretraining.plan_sizes import (
    DEFAULT_CONFIGURATION,
    dataset_number,
    fitted_sizes,
    read_plan,
    shared_ct_intensities,
)
from pretraining.preset_files import load_preset

RUN_FOLDER = "swinfuse__{preset}"


def run_configuration(
    options: argparse.Namespace, overrides: dict[str, Any], folder: Path, resume: bool
) -> Configuration:
    """The settings of a run, new or resumed, checked against the number of processes and what is installed.

    Raises:
        InputError: for settings that cannot be used, or a folder that already holds another run.
    """
    from pretraining.checkpoint import CHECKPOINT, load_checkpoint
    from pretraining.monitoring.tensorboard import require_tensorboard
    from pretraining.processes import Processes
    from pretraining.warm_start import load_initial

    if resume:
        configuration = resumed_configuration(load_checkpoint(folder / CHECKPOINT).configuration, overrides, folder)
    else:
        configuration, _ = load_initial(new_configuration(options, overrides))
        if (folder / CHECKPOINT).exists() and not options.overwrite:
            raise InputError(
                f"{folder} already holds a run. Resume it: --c; start it again: --overwrite; "
                "or keep it and move the folder away"
            )
    Processes(world_size=options.num_gpus).samples(configuration.batch_size)
    if configuration.tensorboard:
        require_tensorboard()
    return configuration


def run_folder(preset: str, recipe: str, made_for: Sequence[str] | None = None) -> str:
    """Name of the run's folder in the results of the collection; includes other recipes and the datasets of `--for`."""
    words = [preset] if recipe == "swinfuse" else [preset, recipe]
    words += ["for", *(dataset_number(dataset) for dataset in made_for)] if made_for else []
    return RUN_FOLDER.format(preset="_".join(words))


def chosen_preset(options: argparse.Namespace, overrides: dict[str, Any]) -> str:
    """The selected preset, otherwise the one that suits the device."""
    return options.preset or ("base" if torch.cuda.is_available() and overrides.get("device") != "cpu" else "tiny")


def new_configuration(options: argparse.Namespace, overrides: dict[str, Any]) -> Configuration:
    """Preset and recipe, the sizes of `--for`, and the settings of the command line, in this order."""
    settings = load_preset(chosen_preset(options, overrides), options.recipe or "swinfuse")
    if options.made_for:
        settings |= settings_for_datasets(options, Configuration.from_dict(settings), overrides)
    return Configuration.from_dict({**settings, **overrides}, "command line")


def settings_for_datasets(
    options: argparse.Namespace, preset: Configuration, overrides: Collection[str]
) -> dict[str, Any]:
    """The settings that `--for` takes from the plans of datasets: sizes, see :func:`fitted_sizes`, and the intensities
    of CT, see :func:`shared_ct_intensities`.

    Args:
        options: the command line.
        preset: settings of the preset.
        overrides: settings that the command line gives.
    """
    (preprocessed,) = required_paths(PREPROCESSED)
    plans, configuration = options.for_plans or STOCK_PLANS, options.for_configuration or DEFAULT_CONFIGURATION
    datasets = [read_plan(preprocessed, dataset, plans, configuration) for dataset in options.made_for]
    taken = fitted_sizes(datasets, preset, "spacing" not in overrides)
    if not options.own_normalisation and "ct_intensities" not in overrides:
        channels = sum(len(plan.ct) for plan in datasets)
        if ct := shared_ct_intensities(datasets):
            taken["ct_intensities"] = ct
        elif channels:
            print(f"--for: {channels} channels are CT; CT is normalised with the intensities of the collection.")
    listing = ", ".join(f"{name} {json.dumps(value)}" for name, value in taken.items())
    print(f"For {', '.join(plan.dataset for plan in datasets)} ({plans}, {configuration}): {listing}")
    return taken


def resumed_configuration(saved: Configuration, overrides: dict[str, Any], folder: Path) -> Configuration:
    """The settings of a resumed run: its own, except those that change neither the losses nor the result.

    Raises:
        InputError: listing settings on the command line that differ from the run's.
    """
    requested = replace(saved, **overrides)
    changes = changed_settings(saved, requested)
    if changes:
        raise InputError(
            f"{folder}: --c cannot resume with other settings ({'; '.join(changes)}). "
            "Leave them out, or start a new run with --overwrite"
        )
    return requested
