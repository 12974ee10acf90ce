"""`swinfuse_pretrain`: from a collection in nnUNet_raw to a published encoder."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nnunetv2_swinfuse.architecture.encoder import Backbone
from nnunetv2_swinfuse.architecture.encoder_file import PUBLISHED
from nnunetv2_swinfuse.architecture.topology import triple
from pretraining.collections.collection import Collection, require_domains
from pretraining.collections.names import find_preprocessed
from pretraining.configuration import Configuration, changed_settings, load_preset
from pretraining.errors import InputError
from pretraining.next_commands import planning_command, training_command
from pretraining.options import build_parser, check_options, given_settings
from pretraining.plan_sizes import DEFAULT_CONFIGURATION, DEFAULT_PLANS, dataset_number, fitted_sizes, read_plan
from pretraining.preprocessed.collection import FOLDER, INDEX, PreprocessedCollection

RUN_FOLDER = "swinfuse__{preset}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0 when the encoder is published, 2 on bad input, 130 when interrupted."""
    parser = build_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    try:
        run(options, words)
    except InputError as error:
        where = f", rank {os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        print(f"swinfuse_pretrain{where}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            "swinfuse_pretrain: interrupted; what was preprocessed is kept, run the same command again.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def run(options: argparse.Namespace, words: Sequence[str]) -> None:
    """All stages: checks, preprocessing, training, publication. Everything cheap is checked first.

    Args:
        options: the parsed command line.
        words: the command line as it was given.
    """
    again = continuation(words)
    check_options(options)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not options.train_only:
        raise InputError(
            f"{os.environ['WORLD_SIZE']} processes would preprocess the same volumes. Preprocess first, in one: "
            "--preprocess_only without torchrun; then add --train_only"
        )
    if options.list:
        print_list(options)
        return
    if options.preprocess_only:
        preprocess_only(options)
        return
    # These take seconds to import: not for --help or a missing path.
    from pretraining.checkpoint import CHECKPOINT, load_checkpoint
    from pretraining.loop import Interrupted
    from pretraining.monitoring.report import REPORT
    from pretraining.monitoring.tensorboard import require_tensorboard
    from pretraining.processes import Processes
    from pretraining.run import Run, carry_out, find_device, goes_on
    from pretraining.run_time import advice
    from pretraining.warm_start import load_initial

    needed = ("nnUNet_preprocessed", "nnUNet_results")
    preprocessed, results = required_paths(*(needed if options.train_only else ("nnUNet_raw", *needed)))[-2:]
    given = given_settings(options)
    preset = chosen_preset(options, given)
    recipe = options.recipe or "swinfuse"
    collection = None if options.train_only else find(options)
    name = collection.name if collection else find_preprocessed(options.dataset, preprocessed, FOLDER).parent.name
    folder = results / name / run_folder(preset, recipe, options.made_for)
    go_on = goes_on(folder / CHECKPOINT, options.continue_run)
    if go_on:
        configuration = continued_configuration(load_checkpoint(folder / CHECKPOINT).configuration, given, folder)
    else:
        configuration, _ = load_initial(new_configuration(options, given))
        if (folder / CHECKPOINT).exists() and not options.overwrite:
            raise InputError(
                f"{folder} already holds a run. Go on with it: --c; start it again: --overwrite; "
                "or keep it and move the folder away"
            )
    if collection is not None:
        require_domains(collection, configuration.modalities)
    Processes(world_size=options.num_gpus).samples(configuration.batch_size)
    if configuration.tensorboard:
        require_tensorboard()
    device = find_device(configuration)
    if options.preset is None and not options.continue_run:
        print(f"No preset was asked for: '{preset}' suits the {device.type} found here. Choose another with -p.")
    warning = advice(configuration, device)
    if warning:
        print(warning)
    if collection is None:
        open_preprocessed(preprocessed / name / FOLDER, configuration)
    else:
        preprocess_collection(collection, options, configuration, preprocessed)
    typed = f"swinfuse_pretrain {shlex.join(words)}"
    work = Run(
        folder, preprocessed / name / FOLDER, configuration, results / PUBLISHED, typed, again, go_on, options.overwrite
    )
    try:
        if options.num_gpus > 1:
            from pretraining.launch import launch

            launch(work, options.num_gpus)
        elif not carry_out(work):
            return
    except Interrupted as stopped:
        print(f"{stopped}. Go on with: {again}", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"Report: {folder / REPORT}   pictures: {folder / 'panels'}")
    print(f"Published: {work.published} (a copy of {folder / 'encoder.pth'})")
    print_next_command(configuration.backbone)


def run_folder(preset: str, recipe: str, made_for: Sequence[str] | None = None) -> str:
    """Of a run, inside the collection's results: recipes other than ours and datasets of `--for` are named in it."""
    words = [preset] if recipe == "swinfuse" else [preset, recipe]
    words += ["for", *(dataset_number(dataset) for dataset in made_for)] if made_for else []
    return RUN_FOLDER.format(preset="_".join(words))


def chosen_preset(options: argparse.Namespace, given: dict[str, Any]) -> str:
    """The preset asked for, else the one that suits the device."""
    return options.preset or ("base" if torch.cuda.is_available() and given.get("device") != "cpu" else "tiny")


def new_configuration(options: argparse.Namespace, given: dict[str, Any]) -> Configuration:
    """Preset and recipe, changed by what stands on the command line."""
    settings = load_preset(chosen_preset(options, given), options.recipe or "swinfuse")
    if options.made_for:
        settings |= sizes_for_datasets(options, Configuration.from_dict(settings), "spacing" not in given)
    return Configuration.from_dict({**settings, **given}, "command line")


def sizes_for_datasets(options: argparse.Namespace, preset: Configuration, spacing: bool) -> dict[str, Any]:
    """What `--for` takes from the datasets' plans, see :func:`fitted_sizes`."""
    (preprocessed,) = required_paths("nnUNet_preprocessed")
    plans, configuration = options.for_plans or DEFAULT_PLANS, options.for_configuration or DEFAULT_CONFIGURATION
    datasets = [read_plan(preprocessed, dataset, plans, configuration) for dataset in options.made_for]
    sizes = fitted_sizes(datasets, preset, spacing)
    listing = ", ".join(f"{name} {json.dumps(value)}" for name, value in sizes.items())
    print(f"For {', '.join(plan.dataset for plan in datasets)} ({plans}, {configuration}): {listing}")
    return sizes


def print_list(options: argparse.Namespace) -> None:
    """What the names resolve to, or all that can be found."""
    from pretraining.collections.integrity import check
    from pretraining.collections.listing import describe, describe_all
    from pretraining.collections.modalities import ModalityMap

    if not options.dataset:
        (raw,) = required_paths("nnUNet_raw")
        print(describe_all(raw, ModalityMap.from_words(options.modality)))
        return
    collection = find(options)
    print(describe(collection, check(collection, options.processes)))


def find(options: argparse.Namespace) -> Collection:
    """The collection that the command line names, in nnUNet_raw."""
    from pretraining.collections.modalities import ModalityMap
    from pretraining.collections.resolve import find_collections

    (raw,) = required_paths("nnUNet_raw")
    modalities = ModalityMap.from_words(options.modality)
    return find_collections(options.dataset, raw, modalities, options.unpaired, options.different_patients)


def preprocess_only(options: argparse.Namespace) -> None:
    """Preprocesses the collection, or a part of it."""
    _, preprocessed = required_paths("nnUNet_raw", "nnUNet_preprocessed")
    given = given_settings(options)
    configuration = new_configuration(options, given)
    collection = find(options)
    folder = preprocess_collection(collection, options, configuration, preprocessed)
    if not (folder / INDEX).is_file():
        print(f"Part {options.part_id} of {options.num_parts} is done; the part that ends last writes {folder / INDEX}")
        return
    print(f"Preprocessed: {folder}")
    counts = PreprocessedCollection.open(folder).header["volumes"]
    if all(counts[domain] for domain in configuration.modalities):
        print(f"Train with: {train_command(options, given)}")


def train_command(options: argparse.Namespace, given: dict[str, Any]) -> str:
    """The command that trains on what this one preprocesses, with all settings that must be the same."""
    words = ["-d", *options.dataset, *(["-p", options.preset] if options.preset else [])]
    words += ["--recipe", options.recipe] if options.recipe else []
    words += ["--for", *options.made_for] if options.made_for else []
    for option in ("for_plans", "for_configuration"):
        words += [f"--{option}", getattr(options, option)] if getattr(options, option) else []
    for name in ("crop_size", "spacing", "validation_share", "modalities"):
        if name in given:
            values = given[name] if isinstance(given[name], list) else [given[name]]
            words += [f"--{name}", *(value if isinstance(value, str) else f"{value:g}" for value in values)]
    return f"swinfuse_pretrain {shlex.join(words)} --train_only"


def preprocess_collection(
    collection: Collection, options: argparse.Namespace, configuration: Configuration, preprocessed: Path
) -> Path:
    """Checks the headers and preprocesses what is missing; returns the folder."""
    # nnunetv2 and SimpleITK take seconds to import, and training alone needs neither.
    from pretraining.collections.integrity import check
    from pretraining.preprocessing.preprocess import preprocess

    print(collection.summary())
    return preprocess(
        collection,
        preprocessed,
        crop_size=triple(configuration.crop_size),
        spacing=configuration.spacing,
        grids=check(collection, options.processes),
        processes=options.processes,
        validation_share=configuration.validation_share,
        seed=configuration.seed,
        overwrite=options.overwrite,
        part=options.part_id,
        parts=options.num_parts,
    )


def open_preprocessed(folder: Path, configuration: Configuration) -> PreprocessedCollection:
    """What was preprocessed before.

    Raises:
        InputError: when it was with other settings, is incomplete, or lacks a modality that the run learns from.
    """
    volumes = PreprocessedCollection.open(folder)
    differing = volumes.differences(configuration.spacing, configuration.validation_share)
    if differing:
        raise InputError(
            f"{folder} was preprocessed with other settings ({'; '.join(differing)}). Use the same, or preprocess "
            "again with --preprocess_only --overwrite"
        )
    without = [domain for domain in configuration.modalities if not volumes.header["volumes"][domain]]
    if without:
        raise InputError(
            f"{folder}: no {without[0]} volume, but the run learns from {' and '.join(configuration.modalities)}; "
            "see --modalities"
        )
    return volumes


def continuation(words: Sequence[str]) -> str:
    """The command that goes on with the run that `words` began: the same, so that no setting differs, with `--c`."""
    return "swinfuse_pretrain " + shlex.join([*(word for word in words if word not in ("--overwrite", "--c")), "--c"])


def required_paths(*names: str) -> tuple[Path, ...]:
    """Those of nnU-Net's three folders that are needed.

    Raises:
        InputError: listing every variable that is not set.
    """
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"not set: {', '.join(missing)}. These are nnU-Net's path variables; for example: "
            + " ".join(f"export {name}=/data/{name}" for name in missing)
        )
    paths = {name: Path(os.environ[name]) for name in names}
    if "nnUNet_raw" in paths and not paths["nnUNet_raw"].is_dir():
        raise InputError(
            f"nnUNet_raw is {paths['nnUNet_raw']}, which is no folder; expected the folder that holds the collection"
        )
    return tuple(paths.values())


def continued_configuration(saved: Configuration, given: dict[str, Any], folder: Path) -> Configuration:
    """The settings to go on with: the run's own, but for those that change neither losses nor result.

    Raises:
        InputError: listing settings on the command line that differ from the run's.
    """
    wanted = replace(saved, **given)
    changed = changed_settings(saved, wanted)
    if changed:
        raise InputError(
            f"{folder}: --c cannot go on with other settings ({'; '.join(changed)}). "
            "Leave them out, or start a new run with --overwrite"
        )
    return wanted


def print_next_command(backbone: Backbone) -> None:
    """What to do with the encoder, and whether nnU-Net is ready for it."""
    from nnunetv2_swinfuse.discovery.register import visible_to_nnunet

    print("Fine-tune it in nnU-Net (for a dataset DATASET_ID that is planned and preprocessed):")
    if not visible_to_nnunet():
        print("    swinfuse_register      # once: nnU-Net does not see the trainer yet")
    if planning := planning_command(backbone):
        print(f"    {planning}")
    print(f"    {training_command(backbone)}")
