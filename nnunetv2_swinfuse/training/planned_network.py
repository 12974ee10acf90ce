"""Plans for SwinFUSE networks: whether the network can be built from them and the encoder fits it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import RESENC_PLANNING, RESENC_PLANS, build_network
from nnunetv2_swinfuse.architecture.transfer import TransferError, check_settings
from nnunetv2_swinfuse.errors import SwinFUSEError
from nnunetv2_swinfuse.nnunet_names import ENCODER
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError


class PlansError(SwinFUSEError, ValueError):
    """Plans that SwinFUSE cannot be trained with; the message names configuration and field and says what to do."""


def check_buildable(architecture: Mapping[str, Any], configuration: str) -> EncoderSettings:
    """Builds the network of an `architecture` block without memory and returns its sizes.

    Raises:
        PlansError: naming configuration and field, when plans were edited into something that cannot be built.
    """
    try:
        with torch.device("meta"):
            return build_network(architecture, 1, 2, True).settings
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no message"])[0].split("__init__() ")[-1]
        raise PlansError(
            f"plans, configuration {configuration}: no network can be built from architecture.arch_kwargs ({reason}). "
            "Undo the change, or plan again with swinfuse_plan_and_preprocess"
        ) from error


def check_encoder_fits(
    settings: EncoderSettings, encoder: Encoder, plans: Mapping[str, Any], planned: Mapping[str, Any]
) -> None:
    """Refuses an encoder whose sizes are not those of the plans, before any long work.

    Args:
        settings: settings of the planned network.
        encoder: the encoder that training would start from.
        plans: nnU-Net's plans, for the command in the message.
        planned: what the planner recorded in the configuration's `swinfuse.planned`.

    Raises:
        EncoderChoiceError: with what differs and the command that plans for this encoder.
    """
    try:
        check_settings(settings, encoder)
    except TransferError as error:
        number = convert_dataset_name_to_id(plans["dataset_name"])
        arguments = ["swinfuse_plan_and_preprocess", "-d", str(number), "-pretrained", str(encoder.path)]
        arguments += ["-overwrite_plans_name", plans["plans_name"]]
        if "gpu_memory_target_in_gb" in planned:
            arguments += ["-gpu_memory_target", f"{planned['gpu_memory_target_in_gb']:g}"]
        command = shlex.join(arguments)
        if encoder.settings.backbone == "resenc":
            command = f"{RESENC_PLANNING.format(number)}, and train with -p {RESENC_PLANS}"
        raise EncoderChoiceError(
            f"{error} To plan for this encoder: {command}; to train with the one that "
            f"{plans['plans_name']} are for: export {ENCODER}=FILE"
        ) from error
