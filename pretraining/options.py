"""The command line of `swinfuse_pretrain`: a few switches, and one option for each setting of the configuration."""

from __future__ import annotations

import argparse
import json
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.nnunet_names import STOCK_PLANS
from pretraining.plan_sizes import DECIDED, DEFAULT_CONFIGURATION
from pretraining.preset_files import preset_names, recipe_names
from pretraining.settings import GROUPS, LISTS_OF_CHOICES, Settings, setting_choices

# Settings without an option of their own: -p and --recipe set them.
NAMES = ("preset", "recipe")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all options and their help."""
    parser = argparse.ArgumentParser(
        prog="swinfuse_pretrain",
        description="Pretrain a SwinFUSE encoder without labels on a collection of CT and MR volumes in nnUNet_raw.",
        epilog="Every setting of a preset can be changed, for example --steps 1000 --crop_size 64 64 64.",
    )
    parser.add_argument(
        "-d", "--dataset", nargs="+", metavar="NAME",
        help="folders in nnUNet_raw or numbers of nnU-Net datasets, such as SynthRAD 501",
    )  # fmt: skip
    parser.add_argument(
        "--list", action="store_true", help="show the collection that the names refer to, or all collections; then stop"
    )
    parser.add_argument(
        "-p", "--preset", choices=preset_names(), help="settings to start from; default: base on a GPU, tiny on a CPU"
    )
    parser.add_argument(
        "--recipe", choices=recipe_names(),
        help="losses and variants of the method; combines with any preset; default: swinfuse",
    )  # fmt: skip
    parser.add_argument(
        "--c", dest="continue_run", action="store_true", help="resume the run of this collection and preset"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the old run, preprocess and train again")
    _add_plan_options(parser)
    _add_collection_options(parser)
    _add_probe_options(parser)
    _add_process_options(parser)
    groups = {name: parser.add_argument_group(f"settings: {name} (defaults: the preset's)") for name in GROUPS}
    for field in fields(Settings):
        if field.name not in NAMES:
            groups[field.metadata["group"]].add_argument(f"--{field.name}", default=None, **_option(field))
    return parser


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for", dest="made_for", nargs="+", metavar="DATASET",
        help="numbers of the nnU-Net datasets to fine-tune on, already planned: stages, crop and spacing are taken "
        "from their plans, so that the whole encoder is used; if one of them is CT, also the normalisation of CT",
    )  # fmt: skip
    parser.add_argument(
        "--own_normalisation", action="store_true",
        help="with --for: normalise CT with the intensities of the collection, not with those of the dataset",
    )  # fmt: skip
    parser.add_argument("--for_plans", metavar="NAME", help=f"name of these plans (default {STOCK_PLANS})")
    parser.add_argument(
        "--for_configuration", metavar="NAME", help=f"their configuration (default {DEFAULT_CONFIGURATION})"
    )


def _add_collection_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--unpaired", action="store_true", help="do not treat CT and MR of the same name as registered pairs"
    )
    parser.add_argument(
        "--modality", nargs="+", action="extend", default=[], metavar="NAME=CT|MR|none",
        help="whether a modality with another name is CT or MR; none leaves its volumes out",
    )  # fmt: skip
    parser.add_argument(
        "--different_patients", action="store_true",
        help="patients with the same identifier in two collections are different patients",
    )  # fmt: skip
    parser.add_argument(
        "--leave_out", type=Path, metavar="FILE",
        help="a text file with identifiers of patients, one a line, that are not learned from, such as test cases",
    )  # fmt: skip


def _add_probe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--probe", nargs="+", metavar="DATASET",
        help="labelled nnU-Net datasets in nnUNet_raw, such as 501: at every validation, a linear layer on the "
        "encoder's features is fitted to their organs and compared with random encoders",
    )  # fmt: skip


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-np", "--processes", type=int, default=2, help="processes for preprocessing (default 2)")
    parser.add_argument(
        "-num_gpus", type=int, default=1, help="GPUs of this machine to train on, or processes with --device cpu"
    )
    stages = parser.add_mutually_exclusive_group()
    stages.add_argument("--preprocess_only", action="store_true", help="preprocess, then stop")
    stages.add_argument(
        "--train_only", action="store_true",
        help="train on preprocessed volumes; needs neither nnUNet_raw nor nnunetv2",
    )  # fmt: skip
    parser.add_argument("-num_parts", type=int, default=1, help="with --preprocess_only: number of parts")
    parser.add_argument("-part_id", type=int, default=0, help="part to process, from 0 to num_parts - 1")


def check_options(options: argparse.Namespace) -> None:
    """Raises InputError for options that contradict each other."""
    if not options.dataset and not options.list:
        raise InputError("-d is missing: name a collection, such as -d SynthRAD; --list shows all")
    if options.num_parts < 1 or not 0 <= options.part_id < options.num_parts:
        raise InputError(
            f"-part_id {options.part_id} of -num_parts {options.num_parts}; expected parts from 0 to num_parts - 1"
        )
    if not options.made_for and (options.for_plans or options.for_configuration):
        raise InputError("--for_plans and --for_configuration belong to --for DATASET, which is missing")
    if not options.made_for and options.own_normalisation:
        raise InputError("--own_normalisation belongs to --for DATASET, which is missing")
    decided = [name for name in DECIDED if options.made_for and getattr(options, name) is not None]
    if decided:
        raise InputError(f"--for takes {', '.join(decided)} from the plans: leave out --{' and --'.join(decided)}")
    if options.num_gpus < 1:
        raise InputError(f"-num_gpus is {options.num_gpus}; expected at least 1")
    if options.num_parts > 1 and not options.preprocess_only:
        raise InputError("-num_parts divides preprocessing only: give --preprocess_only as well")
    if options.continue_run and options.overwrite:
        raise InputError("--c resumes a run and --overwrite deletes it: give one of them")
    if options.num_parts > 1 and options.overwrite:
        raise InputError("--overwrite would delete the work of other parts: remove the preprocessed folder instead")
    of_collection = options.unpaired or options.modality or options.different_patients or options.leave_out
    if options.train_only and of_collection:
        raise InputError(
            "--unpaired, --modality, --different_patients and --leave_out belong to preprocessing, not to --train_only"
        )


def read_identifiers(path: Path) -> list[str]:
    """The lines of a file for `--leave_out` that are not empty.

    Raises:
        InputError: when it cannot be read, or holds none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--leave_out {path}: cannot be read ({error}); expected an identifier a line") from error
    identifiers = [line for line in lines if line]
    if not identifiers:
        raise InputError(f"--leave_out {path}: no identifiers in it; expected one a line, or leave the option out")
    return identifiers


def setting_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line changes."""
    names = [field.name for field in fields(Settings) if field.name not in NAMES]
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _option(field: Field[Any]) -> dict[str, Any]:
    """Arguments of `add_argument` for a setting."""
    name, default = field.name, field.default
    # argparse reads % as the beginning of a format.
    explanation = {"help": field.metadata["help"].replace("%", "%%")}
    choices = setting_choices()
    if name in LISTS_OF_CHOICES:
        return {"choices": choices[name], "nargs": "+", **explanation}
    if name in choices:
        return {"choices": choices[name], **explanation}
    if name == "strides":
        return {"type": json.loads, "metavar": "'[[1,1,1],[2,2,2],...]'", **explanation}
    if name == "ct_intensities":
        return {"type": json.loads, "metavar": "JSON", **explanation}
    if name in ("crop_size", "spacing"):
        return {"type": float if name == "spacing" else int, "nargs": 3, "metavar": ("Z", "Y", "X"), **explanation}
    if isinstance(default, tuple):
        return {"type": int, "nargs": "+", "metavar": "N", **explanation}
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction, **explanation}
    return {"type": type(default), "metavar": type(default).__name__.upper(), **explanation}
