"""Which parameters of the network are pretrained, the layer each belongs to, and freezing them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from torch import nn

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import planned_settings
from nnunetv2_swinfuse.architecture.tensor_names import DOMAIN_INVARIANCE, PATCH_EMBEDDING, stage_of
from nnunetv2_swinfuse.architecture.transfer import TransferReport
from nnunetv2_swinfuse.nnunet_names import STOCK_PLANS

# The patch embedding (or stem) and the Domain Invariance Module come before the stages.
LAYERS_BEFORE_STAGES = 2


def pretrained_stages(architecture: Mapping[str, Any], encoder: Encoder) -> int:
    """How many stages of a network's encoder the pretrained one fills: those that both have.

    Args:
        architecture: the `architecture` block of the network's configuration.
        encoder: the pretrained encoder.
    """
    network = planned_settings(architecture).topology(architecture["arch_kwargs"]["strides"])
    pretrained = encoder.settings.topology(encoder.strides)
    return min(len(network.stage_strides), len(pretrained.stage_strides))


def pretrained_layers(network: nn.Module, stages: int) -> dict[str, int]:
    """Names of the pretrained parameters and the layer of each, counted from the image.

    Layer 0 is the patch embedding or stem, 1 the Domain Invariance Module, 2 and on are the encoder's stages.

    Args:
        network: a SwinFUSE network.
        stages: how many of its encoder's stages were pretrained; further ones are new.
    """
    layers: dict[str, int] = {}
    for name, _ in network.named_parameters():
        stage = stage_of(name)
        if name.startswith(PATCH_EMBEDDING):
            layers[name] = 0
        elif name.startswith(DOMAIN_INVARIANCE):
            layers[name] = 1
        elif stage is not None and stage < stages:
            layers[name] = LAYERS_BEFORE_STAGES + stage
    return layers


def little_used_warning(report: TransferReport, plans: Mapping[str, Any]) -> str:
    """Says that most of the encoder has no place in the plans' network, and which command makes one that has.

    Args:
        report: report of the transfer.
        plans: nnU-Net's plans.
    """
    number = convert_dataset_name_to_id(plans["dataset_name"])
    name = plans["plans_name"]
    share = f"{100 * report.used_share:.1f} %"
    options = f"--for {number}" + ("" if name == STOCK_PLANS else f" --for_plans {name}")
    return (
        f"only {share} of the encoder's parameters are used: the plans have fewer stages than the encoder. "
        f"swinfuse_pretrain -d COLLECTION {options} takes stages, patch and spacing from these plans"
    )


def set_frozen(network: nn.Module, names: Collection[str], frozen: bool) -> bool:
    """Freezes parameters or unfreezes them; returns whether anything changed.

    Raises:
        ValueError: when no parameter has one of these names: a freeze must never do nothing.
    """
    parameters = [parameter for name, parameter in network.named_parameters() if name in names]
    if frozen and not parameters:
        raise ValueError("nothing to freeze: no parameter of the network is known to be pretrained")
    changed = any(parameter.requires_grad == frozen for parameter in parameters)
    for parameter in parameters:
        parameter.requires_grad_(not frozen)
    return changed


def evaluate_frozen(network: nn.Module) -> None:
    """Puts modules whose parameters are all frozen into evaluation mode, which turns off their stochastic depth."""
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
