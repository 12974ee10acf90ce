"""`swinfuse_plan_and_preprocess`: nnUNetv2_plan_and_preprocess with this package's planner.

nnU-Net finds planners by name inside its own package only, so `-pl` cannot name ours; its functions take the class.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiment_dataset,
    preprocess_dataset,
)
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_swinfuse.architecture.encoder_file import Encoder, EncoderFileError
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.errors import errors_without_traceback
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, FINGERPRINT_FILE
from nnunetv2_swinfuse.planning.data_folders import is_preprocessed, newest_change
from nnunetv2_swinfuse.planning.planner import (
    PLANNED,
    PRESETS,
    PlanningError,
    check_backbone,
    nnUNetPlannerSwinFUSE,
    recorded_normalisation,
)
from nnunetv2_swinfuse.training.encoder_choice import find_encoder
from nnunetv2_swinfuse.training.provenance import PROVENANCE_BLOCK

PROGRAM = "swinfuse_plan_and_preprocess"
# nnU-Net's numbers of processes.
PROCESSES = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}
CONFIGURATIONS = ["3d_fullres", "3d_lowres"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 and a sentence when something is missing or does not fit, before long work."""
    options = build_parser().parse_args(arguments)
    try:
        with errors_without_traceback(PROGRAM, EncoderFileError):
            run(options)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted. Run the same command again; finished fingerprints are kept.", file=sys.stderr)
        raise SystemExit(130) from None


def build_parser() -> argparse.ArgumentParser:
    """nnU-Net's flags, and those of this package."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Fingerprint, plan for SwinFUSE and preprocess, as nnUNetv2_plan_and_preprocess does for nnU-Net.",
    )
    parser.add_argument("-d", nargs="+", type=int, required=True, help="dataset IDs, such as 501 502")
    swinfuse = parser.add_argument_group("SwinFUSE")
    swinfuse.add_argument(
        "-pretrained", type=Path, metavar="FILE",
        help="the encoder to plan for; the plans name it, and training starts from it. Default: the sizes of the "
        "encoder that training would find (SWINFUSE_CHECKPOINT, or the one published last), else SwinFUSE's own",
    )  # fmt: skip
    swinfuse.add_argument(
        "-preset", choices=list(PRESETS), default="M", help="GPU to plan for, as nnU-Net's ResEnc presets: "
        + ", ".join(f"{name} {p.gpu_memory_target_in_gb:g} GB ({p.plans_name})" for name, p in PRESETS.items()),
    )  # fmt: skip
    swinfuse.add_argument(
        "--spacing_as_pretrained", action="store_true", help="resample to the pretraining volumes' voxel spacing"
    )
    swinfuse.add_argument(
        "--normalisation_as_pretrained", action="store_true",
        help="normalise CT with the intensities of the pretraining collection, MR inside its mask as in pretraining",
    )  # fmt: skip
    stock = parser.add_argument_group("as in nnUNetv2_plan_and_preprocess")
    stock.add_argument("-fpe", default="DatasetFingerprintExtractor", help="class that creates the fingerprint")
    stock.add_argument("-npfp", type=int, default=default_num_processes, help="processes for fingerprints")
    stock.add_argument("--verify_dataset_integrity", action="store_true", help="check the dataset first (recommended)")
    stock.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    stock.add_argument("--clean", action="store_true", help="create fingerprints and preprocessed data again")
    stock.add_argument("-pl", default=nnUNetPlannerSwinFUSE.__name__, help="only this planner; see -preset")
    stock.add_argument("-gpu_memory_target", type=float, help="in GB; default: the preset's")
    stock.add_argument("-preprocessor_name", default="DefaultPreprocessor", help="class in nnunetv2.preprocessing")
    stock.add_argument(
        "-overwrite_target_spacing", nargs="+", type=float, metavar="MM", help="three numbers in nnU-Net's axis order"
    )
    stock.add_argument("-overwrite_plans_name", help="default: the preset's")
    stock.add_argument(
        "-c", nargs="+", default=None,
        help=f"configurations to preprocess; default {' '.join(CONFIGURATIONS)}, where planned (2d is planned too, "
        "with nnU-Net's own network)",
    )  # fmt: skip
    stock.add_argument("-np", type=int, nargs="+", help="processes, one number or one for each configuration")
    stock.add_argument("--verbose", action="store_true", help="print nnU-Net's messages on every step")
    stock.add_argument("--no_pbar", action="store_true", help="no progress bar")
    return parser


def run(options: argparse.Namespace) -> None:
    """Everything that :func:`build_parser` describes.

    Raises:
        PlanningError, EncoderFileError: naming what is missing or does not fit together.
    """
    encoder = _encoder(options)
    check_backbone(encoder, " ".join(map(str, options.d)))
    _check(options, encoder)
    names = {number: _dataset_name(number) for number in options.d}
    print("Fingerprint extraction...")
    for number in options.d:
        extract_fingerprints(
            [number], options.fpe, options.npfp, options.verify_dataset_integrity,
            options.clean or _is_outdated(names[number]), options.verbose, show_progress_bar=not options.no_pbar,
        )  # fmt: skip
    print("Experiment planning...")
    spacing = options.overwrite_target_spacing
    if options.spacing_as_pretrained and encoder is not None:
        spacing = encoder.spacing
    planner = partial(
        nnUNetPlannerSwinFUSE,
        encoder=encoder,
        name_encoder=options.pretrained is not None,
        normalisation_as_pretrained=options.normalisation_as_pretrained,
    )
    preset = PRESETS[options.preset]
    planned: dict[int, dict[str, Any]] = {}
    for number in options.d:
        planned[number], _ = plan_experiment_dataset(
            number,
            planner,
            options.gpu_memory_target or preset.gpu_memory_target_in_gb,
            options.preprocessor_name,
            spacing,
            options.overwrite_plans_name or preset.plans_name,
        )
    for number in options.d:
        print(f"\n{summary(planned[number])}")
    _check_configurations(options.c or [], planned, names)
    if options.no_pp:
        return
    print("\nPreprocessing...")
    for number in options.d:
        _preprocess(number, names[number], planned[number], options)


def summary(plans: dict[str, Any]) -> str:
    """The 3d configurations of a plan in a table."""
    lines = [
        f"{plans['plans_name']} of {plans['dataset_name']}:",
        "| configuration | patch | batch | stages | estimated memory, GB | data folder |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in PLANNED:
        block = plans["configurations"].get(name, {})
        if "patch_size" not in block:
            continue
        memory = (
            block.get(PROVENANCE_BLOCK, {}).get("planned", {}).get("estimated_memory_in_gb", "nnU-Net's own network")
        )
        patch = " x ".join(str(size) for size in block["patch_size"])
        stages = len(block["architecture"]["arch_kwargs"]["strides"])
        lines.append(f"| {name} | {patch} | {block['batch_size']} | {stages} | {memory} | {block['data_identifier']} |")
    return "\n".join(lines)


def _encoder(options: argparse.Namespace) -> Encoder | None:
    if options.pretrained is not None:
        return load_pretrained(options.pretrained.absolute())
    choice = find_encoder(None)
    if choice is None:
        print("No pretrained encoder: the network gets SwinFUSE's default sizes. Name one with -pretrained FILE.")
        return None
    print(f"The network gets the sizes of {choice[0]}, {choice[1]}.")
    return load_pretrained(choice[0])


def _check(options: argparse.Namespace, encoder: Encoder | None) -> None:
    if options.pl != nnUNetPlannerSwinFUSE.__name__:
        raise PlanningError(
            f"-pl {options.pl}: this command plans with {nnUNetPlannerSwinFUSE.__name__}. For another planner use "
            "nnUNetv2_plan_and_preprocess; nnUNetTrainerSwinFUSE also trains with its plans"
        )
    if options.gpu_memory_target is not None and not options.gpu_memory_target > 0:
        raise PlanningError(f"-gpu_memory_target is {options.gpu_memory_target:g}; expected more than 0 GB")
    if "__" in (options.overwrite_plans_name or ""):
        raise PlanningError(f"-overwrite_plans_name {options.overwrite_plans_name}: nnU-Net allows no '__' in it")
    spacing = options.overwrite_target_spacing
    if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
        raise PlanningError(f"-overwrite_target_spacing is {spacing}; expected three numbers above 0, in mm")
    configurations = options.c or CONFIGURATIONS
    if options.np is not None and len(options.np) not in (1, len(configurations)):
        raise PlanningError(f"-np lists {len(options.np)} numbers for the configurations {configurations}")
    if options.normalisation_as_pretrained:
        recorded_normalisation(encoder)
    if options.spacing_as_pretrained:
        if spacing is not None:
            raise PlanningError("--spacing_as_pretrained and -overwrite_target_spacing both set the spacing; give one")
        if encoder is None or encoder.spacing is None:
            raise PlanningError(
                "--spacing_as_pretrained: "
                + ("no pretrained encoder found" if encoder is None else f"{encoder.path} does not record a spacing")
                + ". Name one that has it with -pretrained FILE"
            )


def _dataset_name(number: int) -> str:
    try:
        nnUNet_preprocessed.require()
        name = convert_id_to_dataset_name(number)
        raw = Path(nnUNet_raw.require()) / name / DATASET_FILE
    except RuntimeError as error:
        raise PlanningError(str(error)) from error
    if not raw.is_file():
        raise PlanningError(f"{raw}: no such file; fingerprint and preprocessing read the raw dataset")
    return name


def _is_outdated(name: str) -> bool:
    """Whether dataset.json or a raw file has changed since the fingerprint was made, which nnU-Net does not look at."""
    fingerprint = Path(nnUNet_preprocessed.require()) / name / FINGERPRINT_FILE
    raw = Path(nnUNet_raw.require()) / name
    cases = get_filenames_of_train_images_and_targets(str(raw))
    outdated = fingerprint.is_file() and newest_change(raw, cases) > fingerprint.stat().st_mtime
    if outdated:
        print(f"{fingerprint}: older than {DATASET_FILE} or a raw file of {name}; made again.")
    return outdated


def _check_configurations(requested: Sequence[str], planned: dict[int, dict[str, Any]], names: dict[int, str]) -> None:
    """Refuses a requested configuration that no dataset's plan has."""
    available = {number: list(plans["configurations"]) for number, plans in planned.items()}
    for name in requested:
        if not any(name in configurations for configurations in available.values()):
            listing = "; ".join(f"{names[number]} has {', '.join(classes)}" for number, classes in available.items())
            raise PlanningError(
                f"-c {name}: not planned. {listing}. (3d_lowres is planned where the patch of 3d_fullres covers less "
                "than a quarter of the median image.)"
            )


def _preprocess(number: int, name: str, plans: dict[str, Any], options: argparse.Namespace) -> None:
    """Preprocesses what is not shared with other plans and complete; nnU-Net also copies the reference labels."""
    configurations = options.c or CONFIGURATIONS
    processes = options.np or [PROCESSES.get(configuration, 4) for configuration in configurations]
    if len(processes) == 1:
        processes = list(processes) * len(configurations)
    raw, preprocessed = Path(nnUNet_raw.require()) / name, Path(nnUNet_preprocessed.require()) / name
    cases = get_filenames_of_train_images_and_targets(str(raw))
    missing: dict[str, int] = {}
    for configuration, count in zip(configurations, processes, strict=True):
        if configuration not in plans["configurations"]:
            print(f"{name}: {configuration} is not planned for this dataset, nothing to preprocess.")
        elif not options.clean and is_preprocessed(plans, configuration, preprocessed, raw, cases):
            folder = plans["configurations"][configuration]["data_identifier"]
            print(f"{name}: {configuration} shares the preprocessed data in {preprocessed / folder}.")
        else:
            missing[configuration] = count
    preprocess_dataset(
        number, plans["plans_name"], list(missing), list(missing.values()), options.verbose, not options.no_pbar
    )
