"""`swinfuse_pretrain`: from a collection in nnUNet_raw to a published encoder."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_swinfuse.architecture.encoder_file import ENCODER_FILE, PUBLISHED
from nnunetv2_swinfuse.errors import InputError, escape_unprintable_names
from nnunetv2_swinfuse.nnunet_names import PREPROCESSED, RAW, RESULTS
from pretraining.collections.collection import Collection, require_domains
from pretraining.collections.names import find_preprocessed
from pretraining.input_volumes import find_volumes, open_preprocessed, preprocess_collection, preprocess_only
from pretraining.next_commands import make_resume_command, print_next_command
from pretraining.nnunet_paths import required_paths
from pretraining.options import build_parser, check_options, setting_overrides
from pretraining.preprocessed.collection import FOLDER
from pretraining.preprocessed.reader_locks import hold_volumes
from pretraining.run_configuration import chosen_preset, run_configuration, run_folder
from pretraining.run_lock import hold_run

if TYPE_CHECKING:
    from pretraining.run import Run
    from pretraining.voxel_probe.organ_probe import OrganDatasets


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0 when the encoder is published, 2 on bad input, 130 when interrupted."""
    parser = build_parser()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(argv)
    escape_unprintable_names()
    try:
        run(options, argv)
    except InputError as error:
        rank = f", rank {os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        print(f"swinfuse_pretrain{rank}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            "swinfuse_pretrain: interrupted; preprocessed volumes are kept, run the same command again.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    """Runs the stages that the options select; everything that can be checked quickly is checked first.

    Args:
        options: the parsed command line.
        argv: the command line as it was typed.
    """
    check_options(options)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not options.train_only:
        raise InputError(
            f"{os.environ['WORLD_SIZE']} processes would preprocess the same volumes. Preprocess first, in one: "
            "--preprocess_only without torchrun; then add --train_only"
        )
    if options.list:
        print_list(options)
    elif options.preprocess_only:
        preprocess_only(options)
    else:
        pretrain(options, argv)


def pretrain(options: argparse.Namespace, argv: Sequence[str]) -> None:
    """Preprocesses what is missing, trains, and publishes the encoder."""
    variables = (PREPROCESSED, RESULTS)
    needs_raw = not options.train_only or options.probe
    preprocessed, results = required_paths(*((RAW, *variables) if needs_raw else variables))[-2:]
    overrides = setting_overrides(options)
    collection = None if options.train_only else find_volumes(options)
    name = collection.name if collection else find_preprocessed(options.dataset, preprocessed, FOLDER).parent.name
    preset, recipe = chosen_preset(options, overrides), options.recipe or "swinfuse"
    folder = results / name / run_folder(preset, recipe, options.made_for)
    # It takes seconds to import: not for --help or a missing path.
    from pretraining.processes import is_first

    with hold_run(folder) if is_first() else nullcontext():
        pretrain_in(folder, preprocessed / name / FOLDER, results / PUBLISHED, collection, options, argv)


def pretrain_in(
    folder: Path,
    volumes: Path,
    published: Path,
    collection: Collection | None,
    options: argparse.Namespace,
    argv: Sequence[str],
) -> None:
    """The run of a command line, when no other command uses its folder.

    Args:
        folder: of the run.
        volumes: folder of the preprocessed volumes.
        published: where the finished encoder is copied to.
        collection: the raw volumes; None with `--train_only`.
        options: the parsed command line.
        argv: the command line as it was typed.
    """
    from pretraining.checkpoint import CHECKPOINT
    from pretraining.monitoring.panels import PANELS_FOLDER
    from pretraining.monitoring.report import REPORT
    from pretraining.processes import is_first
    from pretraining.run import Run, find_device, remove_checkpoint, should_resume
    from pretraining.run_time import duration_warning

    overrides = setting_overrides(options)
    resume = should_resume(folder / CHECKPOINT, options.continue_run)
    configuration = run_configuration(options, overrides, folder, resume)
    if collection is not None:
        require_domains(collection, configuration.modalities)
    device = find_device(configuration)
    if options.num_gpus > 1:
        from pretraining.launch import require_gpus

        require_gpus(device, options.num_gpus)
    if options.preset is None and not options.continue_run:
        print(
            f"No preset given; using '{configuration.preset}', the default for {device.type}. Choose another with -p."
        )
    if warning := duration_warning(configuration, device):
        print(warning)
    preprocessed = volumes.parents[1]
    organs = organ_datasets(options, preprocessed) if options.probe else None
    work = Run(
        folder=folder,
        preprocessed=volumes,
        configuration=configuration,
        published=published,
        command=f"swinfuse_pretrain {shlex.join(argv)}",
        resume_command=make_resume_command(argv),
        resume=resume,
        overwrite=options.overwrite and not resume,
        organs=organs,
    )
    if collection is None:
        open_preprocessed(volumes, configuration)
        if work.overwrite and is_first():
            remove_checkpoint(work)
    else:
        preprocess_collection(
            collection, options, configuration, preprocessed, work.overwrite, lambda: remove_checkpoint(work)
        )
    with hold_volumes(volumes) if is_first() else nullcontext():
        if not train_and_publish(work, options.num_gpus):
            return
    print(f"Report: {folder / REPORT}   pictures: {folder / PANELS_FOLDER}")
    print(f"Published: {published} (a copy of {folder / ENCODER_FILE})")
    print_next_command(configuration.backbone)


def train_and_publish(work: Run, num_gpus: int) -> bool:
    """Trains in this process or in several; exits with 130 and the command that resumes the run when interrupted.

    Returns:
        Whether this process is the one that reports to the user.
    """
    from pretraining.interruption import Interrupted
    from pretraining.run import run_pretraining

    try:
        if num_gpus > 1:
            from pretraining.launch import launch

            launch(work, num_gpus)
            return True
        return run_pretraining(work)
    except Interrupted as stopped:
        reason = str(stopped)
    except KeyboardInterrupt:
        # Outside of the steps, or a second one.
        if not work.checkpoint.exists():
            raise
        reason = f"interrupted; the last checkpoint is {work.checkpoint}"
    print(f"{reason}. Resume with: {work.resume_command}", file=sys.stderr)
    raise SystemExit(130)


def organ_datasets(options: argparse.Namespace, preprocessed: Path) -> OrganDatasets:
    """The labelled datasets of `--probe`, checked.

    Raises:
        InputError: for a dataset that does not exist or has too few labelled cases.
    """
    from pretraining.voxel_probe.organ_probe import OrganDatasets

    (raw,) = required_paths(RAW)
    organs = OrganDatasets(tuple(options.probe), raw, preprocessed, tuple(options.modality))
    organs.plan()
    return organs


def print_list(options: argparse.Namespace) -> None:
    """Prints the collection that the names resolve to, or a list of all collections."""
    from pretraining.collections.integrity import check
    from pretraining.collections.listing import describe, describe_all
    from pretraining.collections.modalities import ModalityMap

    if not options.dataset:
        (raw,) = required_paths(RAW)
        print(describe_all(raw, ModalityMap.from_words(options.modality)))
        return
    collection = find_volumes(options)
    print(describe(collection, check(collection, options.processes)))
