"""The commands that come next: train, resume, fine-tune; as printed and shown in reports."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import Any

from nnunetv2_swinfuse.architecture.encoder import Backbone
from nnunetv2_swinfuse.architecture.registry import RESENC_PLANNING, RESENC_PLANS

DATASET = "DATASET_ID"


def training_command(backbone: Backbone) -> str:
    """Fine-tunes the published encoder; a residual encoder with nnU-Net's plans for residual encoders."""
    plans = f" -p {RESENC_PLANS}" if backbone == "resenc" else ""
    return f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainerSwinFUSE{plans}"


def planning_command(backbone: Backbone) -> str | None:
    """Makes the plans for a residual encoder; None for Swin, which uses nnU-Net's default plans.

    A residual encoder also works with the default plans, but they are planned for a network that needs less memory.
    """
    return RESENC_PLANNING.format(DATASET) if backbone == "resenc" else None


def train_command(options: argparse.Namespace, overrides: dict[str, Any]) -> str:
    """The command that trains on what this one preprocesses, with all settings that have to be the same."""
    words = ["-d", *options.dataset, *(["-p", options.preset] if options.preset else [])]
    words += ["--recipe", options.recipe] if options.recipe else []
    words += ["--for", *options.made_for] if options.made_for else []
    for option in ("for_plans", "for_configuration"):
        words += [f"--{option}", getattr(options, option)] if getattr(options, option) else []
    words += ["--own_normalisation"] if options.own_normalisation else []
    if "ct_intensities" in overrides:
        words += ["--ct_intensities", json.dumps(overrides["ct_intensities"])]
    for name in ("crop_size", "spacing", "validation_share", "modalities"):
        if name in overrides:
            values = overrides[name] if isinstance(overrides[name], list) else [overrides[name]]
            words += [f"--{name}", *(value if isinstance(value, str) else f"{value:g}" for value in values)]
    return f"swinfuse_pretrain {shlex.join(words)} --train_only"


def make_resume_command(argv: Sequence[str]) -> str:
    """The command that resumes the run of a command line: the same, so that no setting differs, with `--c`."""
    return "swinfuse_pretrain " + shlex.join([*(word for word in argv if word not in ("--overwrite", "--c")), "--c"])


def print_next_command(backbone: Backbone) -> None:
    """Prints how to fine-tune the encoder, and to register the trainer first where nnU-Net does not find it."""
    from nnunetv2_swinfuse.discovery.register import visible_to_nnunet

    print("Fine-tune it in nnU-Net (for a dataset DATASET_ID that is planned and preprocessed):")
    if not visible_to_nnunet():
        print("    swinfuse_register      # once: nnU-Net does not find the trainer yet")
    if planning := planning_command(backbone):
        print(f"    {planning}")
    print(f"    {training_command(backbone)}")
