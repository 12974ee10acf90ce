"""The SwinFUSE network and its provenance, written into nnU-Net's plans before nnU-Net reads them."""

from __future__ import annotations

from collections.abc import Mapping
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
from nnunetv2_swinfuse.compatibility import PACKAGE, check_plugin_version
from nnunetv2_swinfuse.nnunet_names import PLANS_FILE
from nnunetv2_swinfuse.training.checkpoints import trained_folds
from nnunetv2_swinfuse.training.encoder_choice import choose_encoder, find_encoder
from nnunetv2_swinfuse.training.model_plans import trained_plans
from nnunetv2_swinfuse.training.planned_network import PlansError, check_buildable, check_encoder_fits
from nnunetv2_swinfuse.training.processing import processing_differences, processing_of
from nnunetv2_swinfuse.training.provenance import KEYS, PROVENANCE_BLOCK, REQUESTS, Provenance
from nnunetv2_swinfuse.training.settings import FineTuningSettings, recorded_settings, requested_settings


@dataclass(frozen=True)
class PlannedTraining:
    """What this package's trainer needs from the plans beyond what nnU-Net reads.

    Attributes:
        settings: settings of fine-tuning.
        named_encoder: the path in the plans' `swinfuse.encoder`, if there is one.
        encoder: the encoder that gave the network its sizes; None when an earlier fold decided the network, or when
            there is none.
        explanation: where the network comes from, in a sentence for the log.
    """

    settings: FineTuningSettings
    named_encoder: str | None
    encoder: Encoder | None
    explanation: str


def plan_training(
    plans: dict[str, Any],
    configuration: str,
    model_folder: Path,
    pretrained: bool,
    defaults: Mapping[str, Any] | None = None,
) -> PlannedTraining:
    """Writes the architecture and the provenance of a configuration into plans, in place.

    The sizes are the encoder's, strides and kernels the plan's. Where a fold of the model has been trained, the
    model's own plans.json decides instead, whatever encoder has been published since; spacing, normalisation, patch
    and the like must be the same in both.

    Args:
        plans: nnU-Net's plans.
        configuration: name of the configuration, such as 3d_fullres.
        model_folder: where the model's folds are or will be.
        pretrained: whether an encoder is needed; otherwise it only gives the sizes where there is one.
        defaults: the trainer's own, in place of those of :class:`FineTuningSettings`.

    Returns:
        The settings of the training, and the encoder to start from.

    Raises:
        PlansError: for a 2d configuration, an impossible plan, or one that processes images otherwise than the model's.
        SettingsError: for settings that are unknown or not the model's.
        VersionError: for a model of a newer version of this package.
        EncoderChoiceError, EncoderFileError: when an encoder is needed and there is no usable one.
    """
    manager = PlansManager({name: value for name, value in plans.items() if name != "continue_training"})
    resolved = manager.get_configuration(configuration).configuration
    patch_size = resolved["patch_size"]
    if len(patch_size) != 3:
        raise PlansError(
            f"configuration {configuration} has the patch size {list(patch_size)}: SwinFUSE is for 3d configurations. "
            "Use 3d_fullres or 3d_lowres, or nnU-Net's own trainers for 2d."
        )
    unknown = sorted(set(resolved.get(PROVENANCE_BLOCK, {})) - KEYS)
    if unknown:
        raise PlansError(
            f"plans: unknown keys {unknown} in 'swinfuse' of {configuration}; you can set {sorted(REQUESTS)}"
        )
    requests = Provenance.from_dict(resolved.get(PROVENANCE_BLOCK, {}))
    block = plans["configurations"][configuration]
    trained = trained_plans(model_folder, configuration)
    if trained is not None:
        _check_same_processing(plans, trained, configuration, model_folder / PLANS_FILE)
        planned = _plan_as_trained(block, trained["configurations"][configuration], requests, model_folder / PLANS_FILE)
    elif planned_backbone(resolved["architecture"]) is not None:
        planned = _plan_as_planned(block, resolved, requests, configuration, plans, pretrained, defaults or {})
    else:
        planned = _plan_from_stock(block, resolved, requests, configuration, pretrained, defaults or {})
    strides = block["architecture"]["arch_kwargs"]["strides"]
    try:
        check_patch_size(patch_size, plan_topology(strides, len(strides)))
    except ValueError as error:
        raise PlansError(f"plans, configuration {configuration}: {error}") from error
    return planned


def _check_same_processing(
    plans: Mapping[str, Any], trained: Mapping[str, Any], configuration: str, plans_file: Path
) -> None:
    """nnU-Net would write the new plans over the model's, and predict with them from the weights of earlier folds."""
    differences = processing_differences(processing_of(trained, configuration), processing_of(plans, configuration))
    if differences:
        raise PlansError(
            f"{plans_file}: its folds ({', '.join(trained_folds(plans_file.parent))}) were trained with other plans "
            f"than {plans['plans_name']} are now. {configuration}: {'; '.join(differences)}. All folds of a model are "
            "predicted with the same plans. Give the new plans a name of their own (-overwrite_plans_name NAME when "
            "planning, -p NAME when training), restore the earlier ones and preprocess again, or move the model folder "
            "away to start over"
        )


def _plan_as_trained(
    block: dict[str, Any], trained: Mapping[str, Any], requests: Provenance, plans_file: Path
) -> PlannedTraining:
    """The model has trained folds: network and settings are theirs, and no encoder is needed yet."""
    requested = requested_settings(requests.training or {})
    # A newer version may have recorded more than this one can read.
    check_plugin_version(trained[PROVENANCE_BLOCK].get("plugin"), plans_file)
    try:
        recorded = Provenance.from_dict(trained[PROVENANCE_BLOCK])
    except ValueError as error:
        raise PlansError(f"{plans_file}: {error}. Restore it, or move the model folder away to start over") from error
    settings = recorded_settings(recorded.training or {}, requested, plans_file)
    block["architecture"], block[PROVENANCE_BLOCK] = trained["architecture"], trained[PROVENANCE_BLOCK]
    explanation = f"network as in {plans_file}, which its trained folds use"
    return PlannedTraining(settings, requests.encoder, None, explanation)


def _plan_as_planned(
    block: dict[str, Any],
    resolved: Mapping[str, Any],
    requests: Provenance,
    configuration: str,
    plans: Mapping[str, Any],
    pretrained: bool,
    defaults: Mapping[str, Any],
) -> PlannedTraining:
    """The plans are for one of our networks: they keep its sizes, which the encoder must have."""
    requested = requested_settings(requests.training or {})
    settings = FineTuningSettings(**{**defaults, **requested})
    encoder, _ = _encoder(requests.encoder, pretrained)
    architecture = deepcopy(resolved["architecture"])
    sizes = check_buildable(architecture, configuration)
    if pretrained and encoder is not None:
        check_encoder_fits(sizes, encoder, plans, requests.planned or {})
    if "drop_path_rate" not in requested:
        settings = replace(settings, drop_path_rate=architecture["arch_kwargs"].get("drop_path_rate", 0.0))
    architecture["arch_kwargs"]["drop_path_rate"] = settings.drop_path_rate
    _write_block(block, architecture, settings, encoder, pretrained, requests)
    explanation = "network as in the plans, which are for SwinFUSE"
    return PlannedTraining(settings, requests.encoder, encoder, explanation)


def _plan_from_stock(
    block: dict[str, Any],
    resolved: Mapping[str, Any],
    requests: Provenance,
    configuration: str,
    pretrained: bool,
    defaults: Mapping[str, Any],
) -> PlannedTraining:
    """The plans are for nnU-Net's network: ours takes its place, with the encoder's sizes or the default ones."""
    settings = FineTuningSettings(**{**defaults, **requested_settings(requests.training or {})})
    encoder, origin = _encoder(requests.encoder, pretrained)
    architecture = _swinfuse_architecture(resolved, configuration, encoder, settings)
    _write_block(block, architecture, settings, encoder, pretrained, requests)
    source = "SwinFUSE's default sizes" if encoder is None else f"the sizes of {encoder.path} ({origin})"
    return PlannedTraining(settings, requests.encoder, encoder, f"network with {source}")


def _write_block(
    block: dict[str, Any],
    architecture: dict[str, Any],
    settings: FineTuningSettings,
    encoder: Encoder | None,
    pretrained: bool,
    requests: Provenance,
) -> None:
    provenance = Provenance(version(PACKAGE), pretrained, training=settings.to_dict(), planned=requests.planned)
    if encoder is not None and pretrained:
        provenance = provenance.with_encoder(encoder, architecture)
    elif encoder is not None:
        provenance = replace(provenance, sizes_from=encoder.path)
    block["architecture"], block[PROVENANCE_BLOCK] = architecture, provenance.to_dict()


def _encoder(named: str | None, required: bool) -> tuple[Encoder | None, str]:
    """The encoder and who named it; without one an error where it is needed, else None."""
    if required:
        return choose_encoder(named)
    choice = find_encoder(named)
    return (None, "") if choice is None else (load_pretrained(choice[0]), choice[1])


def _swinfuse_architecture(
    resolved: Mapping[str, Any],
    configuration: str,
    encoder: Encoder | None,
    settings: FineTuningSettings,
) -> dict[str, Any]:
    stock = resolved["architecture"]
    kwargs = stock["arch_kwargs"]
    if "strides" not in kwargs:
        raise PlansError(
            f"configuration {configuration}: architecture.arch_kwargs of {stock['network_class_name']} has no "
            "'strides', from which SwinFUSE takes its stages. Use plans of nnU-Net's own planners (nnUNetPlans, ResEnc)"
        )
    try:
        return plans_architecture(
            kwargs["strides"],
            EncoderSettings() if encoder is None else encoder.settings,
            kernel_sizes=kwargs.get("kernel_sizes"),
            spacing=resolved["spacing"],
            drop_path_rate=settings.drop_path_rate,
            **(encoder.network_settings if encoder is not None and settings.pretrained_decoder else {}),
        )
    except ValueError as error:
        raise PlansError(f"plans, configuration {configuration}: {error}") from error
