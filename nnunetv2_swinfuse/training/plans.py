"""The SwinFUSE network and its provenance, written into nnU-Net's plans before nnU-Net reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.architecture.registry import planned_backbone, plans_architecture
from nnunetv2_swinfuse.architecture.topology import check_patch_size, plan_topology
from nnunetv2_swinfuse.compatibility import check_plugin_version
from nnunetv2_swinfuse.training.encoder_choice import choose_encoder, find_encoder, trained_folds
from nnunetv2_swinfuse.training.planned_network import PlansError, check_buildable, check_encoder_fits
from nnunetv2_swinfuse.training.pretrained_part import pretrained_stages
from nnunetv2_swinfuse.training.settings import FineTuningSettings, recorded_settings, requested_settings

PLANS_FILE = "plans.json"
# Keys of a configuration's `swinfuse` block: what a user may ask for, and what is recorded beside it.
REQUESTS = frozenset({"encoder", "training"})
RECORDS = frozenset(
    {
        "plugin", "pretrained", "encoder_sha256", "encoder_source", "collection", "pretrained_stages", "sizes_from",
        "pretrained_weights", "planned",
    }
)  # fmt: skip


@dataclass(frozen=True)
class PlannedTraining:
    """What the plans do not say to nnU-Net, but to our trainer.

    Attributes:
        settings: of fine-tuning.
        named_encoder: the path in the plans' `swinfuse.encoder`, if there is one.
        encoder: the encoder that gave the network its sizes; None when an earlier fold decided the network, or when
            there is none.
        explanation: where the network comes from, in a sentence for the log.
    """

    settings: FineTuningSettings
    named_encoder: str | None
    encoder: Encoder | None
    explanation: str


def plan_training(plans: dict[str, Any], configuration: str, model_folder: Path, pretrained: bool) -> PlannedTraining:
    """Writes the architecture and the provenance of a configuration into plans, in place.

    The sizes are the encoder's, strides and kernels the plan's. Where a fold of the model has been trained, the
    model's own plans.json decides instead, whatever encoder has been published since.

    Args:
        plans: nnU-Net's plans.
        configuration: name of the configuration, such as 3d_fullres.
        model_folder: where the model's folds are or will be.
        pretrained: whether an encoder must be there; otherwise it only gives the sizes if it is there.

    Raises:
        PlansError: for a 2d configuration or an impossible plan.
        SettingsError: for settings that are unknown or not the model's.
        VersionError: for a model of a newer version of this package.
        EncoderChoiceError, EncoderFileError: when an encoder is needed and there is no usable one.
    """
    resolved = PlansManager({name: value for name, value in plans.items() if name != "continue_training"})
    resolved_block = resolved.get_configuration(configuration).configuration
    patch_size = resolved_block["patch_size"]
    if len(patch_size) != 3:
        raise PlansError(
            f"configuration {configuration} has the patch size {list(patch_size)}: SwinFUSE is for 3d configurations. "
            "Use 3d_fullres or 3d_lowres, or nnU-Net's own trainers for 2d."
        )
    wishes = resolved_block.get("swinfuse", {})
    unknown = sorted(set(wishes) - REQUESTS - RECORDS)
    if unknown:
        raise PlansError(
            f"plans: unknown keys {unknown} in 'swinfuse' of {configuration}; known are {sorted(REQUESTS)}"
        )
    named = wishes.get("encoder")
    requested = requested_settings(wishes.get("training", {}))
    block = plans["configurations"][configuration]
    trained = trained_block(model_folder, configuration)
    encoder = None
    if trained is not None:
        plans_file = model_folder / PLANS_FILE
        check_plugin_version(trained["swinfuse"].get("plugin"), plans_file)
        settings = recorded_settings(trained["swinfuse"].get("training", {}), requested, plans_file)
        block["architecture"], block["swinfuse"] = trained["architecture"], trained["swinfuse"]
        explanation = f"network as in {plans_file}, which its trained folds use"
    else:
        settings = FineTuningSettings(**requested)
        if pretrained:
            encoder, who = choose_encoder(named)
        else:
            encoder, who = _encoder_for_sizes(named)
        own = deepcopy(resolved_block["architecture"])
        if planned_backbone(own) is not None:
            # Plans that were made for one of our networks keep their own sizes.
            sizes = check_buildable(own, configuration)
            if pretrained and encoder is not None:
                check_encoder_fits(sizes, encoder, plans, wishes.get("planned", {}))
            if "drop_path_rate" not in requested:
                settings = replace(settings, drop_path_rate=own["arch_kwargs"].get("drop_path_rate", 0.0))
            own["arch_kwargs"]["drop_path_rate"] = settings.drop_path_rate
            block["architecture"] = own
            explanation = "network as in the plans, which were made for it"
        else:
            sizes = EncoderSettings() if encoder is None else encoder.settings
            block["architecture"] = _swinfuse_architecture(
                own, configuration, resolved_block["spacing"], sizes, settings
            )
            explanation = "network with " + (
                f"the sizes of {encoder.path} ({who})" if encoder is not None else "SwinFUSE's default sizes"
            )
        block["swinfuse"] = {
            "plugin": version("nnunetv2-swinfuse"),
            "pretrained": pretrained,
            **encoder_provenance(encoder, pretrained, block["architecture"]),
            "training": settings.to_dict(),
            **({"planned": wishes["planned"]} if "planned" in wishes else {}),
        }
    strides = block["architecture"]["arch_kwargs"]["strides"]
    try:
        check_patch_size(patch_size, plan_topology(strides, len(strides)))
    except ValueError as error:
        raise PlansError(f"plans, configuration {configuration}: {error}") from error
    return PlannedTraining(settings, named, encoder, explanation)


def trained_block(model_folder: Path, configuration: str) -> dict[str, Any] | None:
    """The configuration as a model's folds were trained with; None when none has been.

    Raises:
        PlansError: when the model's plans.json cannot be read or is not this trainer's.
    """
    path = model_folder / PLANS_FILE
    folds = trained_folds(model_folder)
    if not folds or not path.is_file():
        return None
    try:
        block = json.loads(path.read_text())["configurations"][configuration]
        if planned_backbone(block["architecture"]) is None or "swinfuse" not in block:
            raise KeyError("swinfuse")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise PlansError(
            f"{path}: {', '.join(folds)} were trained with it, but it is damaged or not a SwinFUSE plan "
            f"({type(error).__name__}: {error}). Restore it, or move the model folder away to start anew"
        ) from error
    return block


def encoder_provenance(encoder: Encoder | None, pretrained: bool, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What plans.json and every checkpoint say of the encoder."""
    if encoder is None:
        return {}
    if not pretrained:
        return {"sizes_from": encoder.path}
    return {
        "encoder": encoder.path,
        "encoder_sha256": encoder.sha256,
        "encoder_source": encoder.source,
        "collection": dict(encoder.collection),
        "pretrained_stages": pretrained_stages(architecture, encoder),
    }


def _encoder_for_sizes(named: str | None) -> tuple[Encoder | None, str]:
    found = find_encoder(named)
    return (None, "") if found is None else (load_pretrained(found[0]), found[1])


def _swinfuse_architecture(
    own: Mapping[str, Any],
    configuration: str,
    spacing: Sequence[float],
    sizes: EncoderSettings,
    settings: FineTuningSettings,
) -> dict[str, Any]:
    kwargs = own["arch_kwargs"]
    if "strides" not in kwargs:
        raise PlansError(
            f"configuration {configuration}: architecture.arch_kwargs of {own['network_class_name']} has no 'strides', "
            "from which SwinFUSE takes its stages. Use plans of nnU-Net's own planners (nnUNetPlans, ResEnc)"
        )
    try:
        return plans_architecture(
            kwargs["strides"],
            sizes,
            kernel_sizes=kwargs.get("kernel_sizes"),
            spacing=spacing,
            drop_path_rate=settings.drop_path_rate,
        )
    except ValueError as error:
        raise PlansError(f"plans, configuration {configuration}: {error}") from error
