"""All networks and backbones: built from encoder settings, written to plans.json and recognised in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from nnunetv2_swinfuse.architecture.cell_grid import token_spacing
from nnunetv2_swinfuse.architecture.encoder import Backbone, DomainInvariantEncoder, EncoderSettings
from nnunetv2_swinfuse.architecture.residual_encoder import ResidualEncoder, residual_stem
from nnunetv2_swinfuse.architecture.residual_unet import ResEncFUSEUNet
from nnunetv2_swinfuse.architecture.swin import PatchEmbedding
from nnunetv2_swinfuse.architecture.swin_encoder import SwinEncoder
from nnunetv2_swinfuse.architecture.topology import Topology
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet, planned_stem_features

NETWORKS: dict[Backbone, type[SwinFUSEUNet] | type[ResEncFUSEUNet]] = {"swin": SwinFUSEUNet, "resenc": ResEncFUSEUNet}
# Names in plans.json, which nnU-Net imports the networks by.
NETWORK_NAMES: dict[Backbone, str] = {
    backbone: f"{network.__module__}.{network.__name__}" for backbone, network in NETWORKS.items()
}
# How nnU-Net plans for its residual encoder, whose memory is its own planners' matter; {} is the dataset's number.
RESENC_PLANNING = "nnUNetv2_plan_and_preprocess -d {} -pl nnUNetPlannerResEncM"
RESENC_PLANS = "nnUNetResEncUNetMPlans"


def build_backbone(
    settings: EncoderSettings,
    topology: Topology,
    input_channels: int = 1,
    drop_path_rate: float = 0.0,
    checkpointing: bool = False,
    spacing: Sequence[float] | None = None,
) -> tuple[nn.Module, DomainInvariantEncoder]:
    """Patch embedding (or stem) and encoder, as the networks have them under `patch_embed` and `encoder`."""
    tokens = token_spacing(spacing, topology.patch_stride)
    if settings.backbone == "resenc":
        stem = residual_stem(input_channels, settings.feature_size)
        return stem, ResidualEncoder(settings, topology.stage_strides, None, drop_path_rate, checkpointing, tokens)
    patches = PatchEmbedding(input_channels, settings.feature_size, topology.patch_stride)
    return patches, SwinEncoder(settings, topology.stage_strides, drop_path_rate, checkpointing, tokens)


def plans_architecture(
    strides: Sequence[Sequence[int]],
    settings: EncoderSettings,
    *,
    kernel_sizes: Sequence[Sequence[int]] | None = None,
    spacing: Sequence[float] | None = None,
    **network_settings: Any,
) -> dict[str, Any]:
    """The `architecture` block of a configuration in plans.json, from which nnU-Net rebuilds the network.

    Args:
        strides: the plan's strides; nnU-Net also derives its deep supervision scales from them.
        settings: sizes of the encoder; the backbone decides which network it is.
        kernel_sizes: the plan's convolution kernels.
        spacing: the configuration's voxel spacing in mm (z, y, x).
        network_settings: further keyword arguments of the network.

    Raises:
        ValueError: naming the field, when the strides are impossible.
    """
    sizes = settings.to_dict()
    if settings.backbone == "swin":
        sizes["stem_features"] = planned_stem_features(settings.feature_size)
    return {
        "network_class_name": NETWORK_NAMES[sizes.pop("backbone")],
        "arch_kwargs": {
            "strides": [list(stride) for stride in settings.topology(strides).strides],
            "kernel_sizes": None if kernel_sizes is None else [list(kernel) for kernel in kernel_sizes],
            "spacing": None if spacing is None else [float(distance) for distance in spacing],
            **sizes,
            **network_settings,
        },
        "_kw_requires_import": [],
    }


def planned_backbone(architecture: Mapping[str, Any]) -> Backbone | None:
    """Which of our networks an `architecture` block names; None for any other."""
    name = architecture["network_class_name"]
    return next((backbone for backbone, known in NETWORK_NAMES.items() if known == name), None)


def planned_settings(architecture: Mapping[str, Any]) -> EncoderSettings:
    """The encoder's sizes in the `architecture` block of one of our networks; raises ValueError for impossible ones."""
    kwargs = architecture["arch_kwargs"]
    sizes = {field.name: kwargs[field.name] for field in fields(EncoderSettings) if field.name in kwargs}
    return EncoderSettings.from_dict({**sizes, "backbone": _our_backbone(architecture)})


def build_network(
    architecture: Mapping[str, Any], input_channels: int, num_classes: int, deep_supervision: bool = False
) -> SwinFUSEUNet | ResEncFUSEUNet:
    """The network of an `architecture` block of ours; raises ValueError for what cannot be built."""
    network = NETWORKS[_our_backbone(architecture)]
    return network(input_channels, num_classes, deep_supervision, **architecture["arch_kwargs"])


def _our_backbone(architecture: Mapping[str, Any]) -> Backbone:
    backbone = planned_backbone(architecture)
    if backbone is None:
        raise ValueError(f"{architecture['network_class_name']} is none of {list(NETWORK_NAMES.values())}")
    return backbone
