"""`swinfuse_pretrain`: from a collection in nnUNet_raw to a published encoder."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from nnunetv2_swinfuse.architecture.encoder_file import PUBLISHED
from nnunetv2_swinfuse.architecture.topology import triple
from pretraining.configuration import CHOICES, Configuration, changed_settings, load_preset, preset_names
from pretraining.errors import InputError

PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
RUN_FOLDER = "swinfuse__{preset}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0 when the encoder is published, 2 on bad input, 130 when interrupted."""
    parser = build_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    try:
        run(options, continuation(words))
    except InputError as error:
        print(f"swinfuse_pretrain: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            "swinfuse_pretrain: interrupted; what was preprocessed is kept, run the same command again.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def run(options: argparse.Namespace, again: str) -> None:
    """All stages: checks, preprocessing, training, publication. Everything cheap is checked first.

    Args:
        options: the parsed command line.
        again: the command that goes on after an interruption.
    """
    raw, preprocessed, results = required_paths()
    # nnunetv2 and SimpleITK take seconds to import: not for --help or a missing path.
    from pretraining.checkpoint import export_encoder, load_checkpoint
    from pretraining.collections.integrity import check
    from pretraining.collections.resolve import find_collection
    from pretraining.cost import advice
    from pretraining.crops import PreprocessedCollection
    from pretraining.loop import CHECKPOINT, Interrupted, train
    from pretraining.preprocessing import preprocess

    given = given_settings(options)
    preset = options.preset or ("base" if torch.cuda.is_available() and given.get("device") != "cpu" else "tiny")
    collection = find_collection(options.dataset, raw, unpaired=options.unpaired)
    folder = results / collection.name / RUN_FOLDER.format(preset=preset)
    state = None
    if options.continue_run:
        state = load_checkpoint(folder / CHECKPOINT)
        configuration = continued_configuration(state.configuration, given, folder)
    else:
        configuration = Configuration.from_dict({**load_preset(preset), **given}, "command line")
        if (folder / CHECKPOINT).exists() and not options.overwrite:
            raise InputError(
                f"{folder} already holds a run. Go on with it: --c; start it again: --overwrite; "
                "or keep it and move the folder away"
            )
    device = find_device(configuration)
    if options.preset is None and not options.continue_run:
        print(f"No preset was asked for: '{preset}' suits the {device.type} found here. Choose another with -p.")
    print(collection.summary())
    warning = advice(configuration, device)
    if warning:
        print(warning)
    check(collection, options.processes)
    preprocessed_folder = preprocess(
        collection,
        preprocessed,
        crop_size=triple(configuration.crop_size),
        spacing=configuration.spacing,
        processes=options.processes,
        validation_share=configuration.validation_share,
        seed=configuration.seed,
        overwrite=options.overwrite,
    )
    volumes = PreprocessedCollection.open(preprocessed_folder)
    if state is not None and state.collection["hash"] != volumes.hash:
        raise InputError(
            f"{folder}: the run was made with other volumes of {state.collection['name']} than are there now. "
            "Restore them, or start again with --overwrite"
        )
    if options.overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration.json").write_text(json.dumps(configuration.to_dict(), indent=4) + "\n")
    try:
        model = train(folder, volumes, configuration, device, state)
    except Interrupted as stopped:
        print(f"{stopped}. Go on with: {again}", file=sys.stderr)
        raise SystemExit(130) from None
    encoder_path = folder / "encoder.pth"
    identity = {"name": volumes.name, "hash": volumes.hash}
    export_encoder(model, configuration, identity, tuple(volumes.spacing), encoder_path, volumes.normalisation)
    publish(encoder_path, results / PUBLISHED)
    print(f"Curves: {folder / 'progress.png'}   pictures: {folder / 'panels'}")
    print(f"Published: {results / PUBLISHED} (a copy of {encoder_path})")
    print_next_command()


def continuation(words: Sequence[str]) -> str:
    """The command that goes on with the run that `words` began: the same, so that no setting differs, with `--c`."""
    return "swinfuse_pretrain " + shlex.join([*(word for word in words if word not in ("--overwrite", "--c")), "--c"])


def required_paths() -> tuple[Path, Path, Path]:
    """nnU-Net's three folders.

    Raises:
        InputError: listing every variable that is not set.
    """
    missing = [name for name in PATHS if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"not set: {', '.join(missing)}. These are nnU-Net's path variables; for example: "
            + " ".join(f"export {name}=/data/{name}" for name in missing)
        )
    raw, preprocessed, results = (Path(os.environ[name]) for name in PATHS)
    if not raw.is_dir():
        raise InputError(f"nnUNet_raw is {raw}, which is no folder; expected the folder that holds the collection")
    return raw, preprocessed, results


def find_device(configuration: Configuration) -> torch.device:
    """The torch device a configuration asks for.

    Raises:
        InputError: when CUDA is asked for and not there.
    """
    if configuration.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch sees no GPU here; use --device cpu, or -p tiny for a trial")
    if configuration.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(configuration.device)


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


def publish(encoder: Path, published: Path) -> None:
    """Makes a run's encoder the one that fine-tuning takes; readers never see half a file."""
    from pretraining.checkpoint import write_or_explain

    def copy() -> None:
        published.parent.mkdir(parents=True, exist_ok=True)
        temporary = published.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(encoder, temporary)
        os.replace(temporary, published)

    write_or_explain(copy, published)


def print_next_command() -> None:
    """What to do with the encoder, and whether nnU-Net is ready for it."""
    from nnunetv2_swinfuse.discovery.register import visible_to_nnunet

    print("Fine-tune it in nnU-Net (for a dataset DATASET_ID that is planned and preprocessed):")
    if not visible_to_nnunet():
        print("    swinfuse_register      # once: nnU-Net does not see the trainer yet")
    print("    nnUNetv2_train DATASET_ID 3d_fullres 0 -tr nnUNetTrainerSwinFUSE")


def build_parser() -> argparse.ArgumentParser:
    """The command line: a few switches, and one option for each setting of the configuration."""
    parser = argparse.ArgumentParser(
        prog="swinfuse_pretrain",
        description="Pretrain a SwinFUSE encoder without labels on a collection of CT and MR volumes in nnUNet_raw.",
        epilog="Every setting of a preset can be changed, for example --steps 1000 --crop_size 64 64 64.",
    )
    parser.add_argument("-d", "--dataset", required=True, metavar="NAME", help="folder in nnUNet_raw, such as SynthRAD")
    parser.add_argument(
        "-p", "--preset", choices=preset_names(), help="settings to start from; default: base on a GPU, tiny on a CPU"
    )
    parser.add_argument(
        "--c", dest="continue_run", action="store_true", help="go on with the run of this collection and preset"
    )
    parser.add_argument("--overwrite", action="store_true", help="preprocess and train again from the beginning")
    parser.add_argument(
        "--unpaired", action="store_true", help="do not take CT and MR of the same name for registered pairs"
    )
    parser.add_argument("-np", "--processes", type=int, default=2, help="processes for preprocessing (default 2)")
    settings = parser.add_argument_group("settings (defaults: the preset's)")
    for field in fields(Configuration):
        if field.name == "preset":
            continue
        settings.add_argument(f"--{field.name}", default=None, **_option(field.name, field.default))
    return parser


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that stand on the command line."""
    names = [field.name for field in fields(Configuration) if field.name != "preset"]
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _option(name: str, default: Any) -> dict[str, Any]:
    if name in CHOICES:
        return {"choices": CHOICES[name]}
    if name == "strides":
        return {"type": json.loads, "metavar": "'[[1,1,1],[2,2,2],...]'"}
    if name in ("crop_size", "spacing"):
        return {"type": float if name == "spacing" else int, "nargs": 3, "metavar": ("Z", "Y", "X")}
    if isinstance(default, tuple):
        return {"type": int, "nargs": "+", "metavar": "N"}
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction}
    return {"type": type(default), "metavar": type(default).__name__.upper()}
