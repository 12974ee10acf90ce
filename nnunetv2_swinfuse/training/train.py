"""`swinfuse_train`: nnUNetv2_train that finds this package's trainers and plans without any setup."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_swinfuse.discovery.register import external_trainers_folder
from nnunetv2_swinfuse.errors import SwinFUSEError, errors_without_traceback
from nnunetv2_swinfuse.nnunet_names import EXTERNAL_TRAINERS, RESULTS, STOCK_PLANS, SWINFUSE_PLANS, TRAINER
from nnunetv2_swinfuse.training.checkpoints import trained_folds

PROGRAM = "swinfuse_train"
# nnU-Net's flags that take a value, needed to find the three positional arguments.
OPTIONS_WITH_VALUE = ("-tr", "-p", "-pretrained_weights", "-num_gpus", "-device")


class TrainingInputError(SwinFUSEError, ValueError):
    """A dataset, plans or a configuration that does not exist or is not clear; the message says what to do."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: nnU-Net's own, with our trainers visible, and `-tr` and `-p` filled in where they are missing.

    Exits with 2 and a message when something is missing or does not fit.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    make_trainers_visible()
    if "-h" in arguments or "--help" in arguments or not arguments:
        print(
            f"{PROGRAM} is nnUNetv2_train, but finds this package's trainers. Defaults: -tr {TRAINER}, and -p "
            f"{SWINFUSE_PLANS} where the dataset has these plans (swinfuse_plan_and_preprocess), else {STOCK_PLANS}.\n"
        )
        arguments = ["-h"]
    else:
        with errors_without_traceback(PROGRAM):
            arguments = complete(arguments)
    # Importing nnU-Net and torch takes seconds, which a wrong command should not cost.
    from nnunetv2.run.run_training import run_training_entry

    from nnunetv2_swinfuse.architecture.encoder_file import EncoderFileError
    from nnunetv2_swinfuse.architecture.transfer import TransferError

    # nnU-Net's entry point reads the command line itself.
    sys.argv = ["nnUNetv2_train", *arguments]
    with errors_without_traceback(PROGRAM, EncoderFileError, TransferError):
        run_training_entry()


def make_trainers_visible() -> None:
    """Adds this package's folder to `nnUNet_extTrainer` for this process and those it starts; keeps what is in it."""
    folder = str(external_trainers_folder())
    paths = [path for path in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if path]
    if folder not in paths:
        os.environ[EXTERNAL_TRAINERS] = os.pathsep.join([*paths, folder])


def complete(arguments: Sequence[str]) -> list[str]:
    """nnU-Net's arguments with trainer and plans filled in; the user's come last and win.

    Raises:
        TrainingInputError: when the dataset has no such plans, these no such configuration, or a model has been
            trained with other plans than those that would be the default now.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in OPTIONS_WITH_VALUE:
        parser.add_argument(flag)
    parser.add_argument("words", nargs="*")
    parsed, _ = parser.parse_known_intermixed_args(arguments)
    if len(parsed.words) != 3:
        # nnU-Net says what is missing.
        return ["-tr", TRAINER, *arguments]
    dataset, configuration, _ = parsed.words
    folder = _preprocessed_folder(dataset)
    plans_name = parsed.p or _default_plans(folder, parsed.tr or TRAINER, configuration)
    _check_plans(folder, plans_name, configuration)
    if parsed.p is None:
        print(f"{PROGRAM}: training with {plans_name}; -p names others.")
    return ["-tr", TRAINER, "-p", plans_name, *arguments]


def _preprocessed_folder(dataset: str) -> Path:
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    try:
        return Path(nnUNet_preprocessed.require()) / maybe_convert_to_dataset_name(dataset)
    except (RuntimeError, ValueError) as error:
        raise TrainingInputError(str(error)) from error


def _default_plans(folder: Path, trainer: str, configuration: str) -> str:
    """This package's plans where the dataset has them, else nnU-Net's; refuses to leave a trained model for another."""
    default, other = SWINFUSE_PLANS, STOCK_PLANS
    if not (folder / f"{default}.json").is_file():
        default, other = other, default
    results = Path(os.environ.get(RESULTS, "")) / folder.name
    trained = {name: trained_folds(results / f"{trainer}__{name}__{configuration}") for name in (default, other)}
    if trained[other] and not trained[default]:
        raise TrainingInputError(
            f"{results / f'{trainer}__{other}__{configuration}'}: its folds ({', '.join(trained[other])}) were trained "
            f"with {other}, but the default of this dataset is {default} now. Name the plans: -p {other} for that "
            f"model, -p {default} for a new one"
        )
    return default


def _check_plans(folder: Path, plans_name: str, configuration: str) -> None:
    number = folder.name[len("Dataset") :].split("_")[0]
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        existing = sorted(other.stem for other in folder.glob("*Plans*.json"))
        raise TrainingInputError(
            f"{path}: no such plans; the dataset has {', '.join(existing) or 'none'}. Create them with: "
            f"swinfuse_plan_and_preprocess -d {number}"
        )
    try:
        configurations = list(json.loads(path.read_text())["configurations"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingInputError(
            f"{path}: damaged or no plans of nnU-Net ({type(error).__name__}: {error}). Plan again with: "
            f"swinfuse_plan_and_preprocess -d {number}"
        ) from error
    if configuration not in configurations:
        raise TrainingInputError(
            f"{path}: no configuration {configuration!r}; it has {', '.join(configurations)}. (3d_lowres and "
            "3d_cascade_fullres are planned where the patch of 3d_fullres covers less than a quarter of the median "
            "image.)"
        )
