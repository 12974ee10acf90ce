"""Pretrained tensors into a network: with other input channels, other strides, fewer or more stages.

Nothing is skipped silently: every tensor ends in one list of the report, an encoder tensor of a stage that both sides
have must be covered, and a pretrained tensor of such a stage must have a place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.decoder_transfer import UPSAMPLING, adapt_upsampling, name_at_resolution
from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.residual_transfer import adapt_kernel, name_in_network, stride_change
from nnunetv2_swinfuse.architecture.swin_transfer import adapt_merging, adapt_patch
from nnunetv2_swinfuse.architecture.tensor_names import (
    DOMAIN_INVARIANCE,
    FULL_RESOLUTION_WEIGHT,
    MERGING,
    PATCH_WEIGHT,
    PRETRAINED,
    SECOND_NAME,
    STEM_WEIGHT,
    part_of,
    stage_of,
    stage_prefix,
)
from nnunetv2_swinfuse.architecture.topology import Topology, Triple

# Below this share of the encoder's parameters in use, most of the pretraining is lost.
LITTLE_USED = 0.25


class TransferError(ValueError):
    """The encoder does not fit the network; the message lists what differs."""


@dataclass
class TransferReport:
    """What became of each tensor, and of how many parameters.

    Attributes:
        matched: copied as they are.
        adapted: copied after a change, with its description.
        fresh: tensors of the network that keep their random initialisation.
        unused: pretrained tensors that the network has no place for: of further stages, or outside the encoder.
        network_parameters: number of parameters of the whole network.
        pretrained_parameters: those of the network that were pretrained.
        encoder_parameters: number of parameters of the encoder, without what its file holds besides (MONAI's decoder).
        used_parameters: those of the encoder that have a place in the network.
    """

    matched: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    network_parameters: int = 0
    pretrained_parameters: int = 0
    encoder_parameters: int = 0
    used_parameters: int = 0

    @property
    def pretrained_share(self) -> float:
        """Share of the network's parameters that were pretrained, from 0 to 1."""
        return self.pretrained_parameters / max(self.network_parameters, 1)

    @property
    def used_share(self) -> float:
        """Share of the encoder's parameters that the network uses, from 0 to 1."""
        return self.used_parameters / max(self.encoder_parameters, 1)

    @property
    def little_used(self) -> bool:
        """Whether most of the pretraining is lost, because the network has fewer stages than the encoder."""
        return self.used_share < LITTLE_USED

    def __str__(self) -> str:
        lines = [
            f"Pretrained: {_percent(self.pretrained_share)} of the network's {_millions(self.network_parameters)} "
            f"parameters; {_percent(self.used_share)} of the encoder's {_millions(self.encoder_parameters)} are used",
            f"  {len(self.matched)} tensors matched, {len(self.adapted)} adapted, {len(self.fresh)} fresh, "
            f"{len(self.unused)} unused",
        ]
        lines += [f"  adapted {name}: {change}" for name, change in self.adapted.items()]
        lines += [f"  {kind}: {_parts(names)}" for kind, names in (("fresh", self.fresh), ("unused", self.unused))
                  if names]  # fmt: skip
        return "\n".join(lines)


class Target(Protocol):
    """A network with a SwinFUSE encoder under the names `patch_embed` and `encoder`."""

    settings: EncoderSettings
    topology: Topology

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def transfer_encoder(
    network: Target,
    encoder: Encoder,
    image_channels: int | None = None,
    new_domain_invariance: bool = False,
    decoder: bool = False,
) -> TransferReport:
    """Copies a pretrained encoder into a network, in place.

    - Input channels: the pretrained filters are spread over all image channels and rescaled, so that an image repeated
      in each channel gives the pretrained response; channels beyond `image_channels` (the one-hot channels of a
      cascade) start at zero.
    - Strides: where the network does not halve an axis that pretraining halved, patch filters and merging weights are
      folded along it; in the opposite case they are spread. Either way a map that is constant along the axis gives
      the pretrained response. Convolutions of a residual encoder are used as they are with another stride; for
      another kernel see :mod:`residual_transfer`.
    - Stages: those that only one side has stay fresh or unused.
    - Stem, skips and decoder, where the whole network was pretrained, by the resolution of their stages; the
      segmentation layers are always fresh. See :mod:`decoder_transfer`.

    Args:
        network: the network to fill.
        encoder: the pretrained encoder.
        image_channels: how many of the network's input channels are images; all when not given.
        new_domain_invariance: accept an encoder without the Domain Invariance Module; the network's stays as it is.
        decoder: also copy what was pretrained besides the encoder; else it is reported as unused.

    Returns:
        What became of every tensor: matched, adapted, fresh or unused.

    Raises:
        TransferError: when sizes differ, a tensor of a common stage is not covered, or a pretrained tensor of a common
            stage has no place. Nothing is changed then.
    """
    added = new_domain_invariance and encoder.settings.domain_invariance is None
    check_settings(network.settings, encoder, ignored={"domain_invariance"} if added else set())
    target: dict[str, Tensor] = dict(network.named_parameters())
    strides = encoder.settings.topology(encoder.strides).stage_strides, network.topology.stage_strides
    weights = {
        name_in_network(name, target): weight for name, weight in encoder.weights.items() if SECOND_NAME not in name
    }
    source = encoder.path or "the encoder"
    further = _further_stages(strides)
    _check_coverage(weights, target, source, (*further, DOMAIN_INVARIANCE) if added else further)
    encoder_parameters = sum(weight.numel() for weight in weights.values())
    depths = len(encoder.strides), len(network.topology.strides)
    placed = {name: name_at_resolution(name, *depths) if decoder else None for name in encoder.decoder_weights}
    weights |= {place: encoder.decoder_weights[name] for name, place in placed.items() if place in target}
    report = TransferReport(
        fresh=[name for name in target if name not in weights],
        unused=[
            *(name for name in weights if name not in target),
            *(name for name, place in placed.items() if place not in target),
            *encoder.left_out,
        ],
        network_parameters=sum(tensor.numel() for tensor in target.values()),
        encoder_parameters=encoder_parameters,
    )
    filled: dict[str, Tensor] = {}
    adapted_merging: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name not in target:
            continue
        if MERGING in name:
            old, new = (side[stage_of(name) or 0] for side in strides)
            if old != new and name not in adapted_merging:
                adapted_merging |= adapt_merging(weights, name, old, new, encoder.settings.monai_legacy_merging)
            adapted, change = adapted_merging.get(name, weight), f"stride {old} to {new}" if old != new else ""
        else:
            adapted, change = _adapt(name, weight, target[name], network, strides, image_channels)
        if adapted.shape != target[name].shape:
            changed = "" if adapted.shape == weight.shape else f", {tuple(adapted.shape)} after {change}"
            raise TransferError(
                f"{name}: shape {tuple(weight.shape)} in {source}{changed}, {tuple(target[name].shape)} in the "
                "network; both must be built with the same encoder settings"
                + ("" if name.startswith(PRETRAINED) else ", or leave the decoder out: SWINFUSE_PRETRAINED_DECODER=0")
            )
        filled[name] = adapted
        report.used_parameters += weight.numel() if name.startswith(PRETRAINED) else 0
        report.pretrained_parameters += adapted.numel()
        if change:
            report.adapted[name] = change
        else:
            report.matched.append(name)
    with torch.no_grad():
        for name, tensor in filled.items():
            target[name].copy_(tensor)
    return report


def _adapt(
    name: str,
    weight: Tensor,
    target: Tensor,
    network: Target,
    strides: tuple[tuple[Triple, ...], tuple[Triple, ...]],
    image_channels: int | None,
) -> tuple[Tensor, str]:
    """A tensor of the encoder, other than of patch merging, for its place in the network; also says what changed.

    Args:
        name, weight: name and weight of a tensor of the encoder.
        target: the network's parameter of this name.
        network: the network.
        strides: strides of the stages of the encoder and of the network.
        image_channels: see :func:`transfer_encoder`.
    """
    changes: list[str] = []
    if name in (PATCH_WEIGHT, STEM_WEIGHT, FULL_RESOLUTION_WEIGHT):
        channels = target.shape[1]
        weight, change = _adapt_channels(weight, channels, channels if image_channels is None else image_channels)
        changes.append(change)
    if name == PATCH_WEIGHT:
        weight, change = adapt_patch(weight, network.topology.patch_stride)
        changes.append(change)
    elif name.startswith(UPSAMPLING) and weight.ndim == 5:
        weight, change = adapt_upsampling(weight, tuple(target.shape[2:]))
        changes.append(change)
    elif weight.ndim == 5:
        weight, change = adapt_kernel(weight, tuple(target.shape[2:]))
        changes += [change, stride_change(name, *strides)]
    return weight, ", ".join(filter(None, changes))


def check_settings(settings: EncoderSettings, encoder: Encoder, ignored: Set[str] = frozenset()) -> None:
    """Checks that an encoder has the sizes of a network; stages that only one of them has may differ.

    Args:
        settings: settings of the network.
        encoder: the encoder.
        ignored: settings that may differ.

    Raises:
        TransferError: listing what differs.
    """
    network_values, encoder_values = settings.to_dict(), encoder.settings.to_dict()
    names = ["backbone"] if network_values["backbone"] != encoder_values["backbone"] else list(network_values)
    differing = {
        name: (encoder_values[name], network_values[name])
        for name in names
        if name not in ignored and _comparable(network_values[name]) != _comparable(encoder_values[name])
    }
    pretrained = _settings_of_common_stages(encoder.settings, encoder, settings)
    for name, value in _settings_of_common_stages(settings, encoder, encoder.settings).items():
        if value == pretrained.get(name):
            differing.pop(name, None)
    if differing:
        listing = "; ".join(f"{name} is {a} in the encoder, {b} in the network" for name, (a, b) in differing.items())
        raise TransferError(
            f"{encoder.path or 'the encoder'} does not fit the network: {listing}. Use plans without a SwinFUSE "
            "architecture, so that the trainer uses the encoder's sizes, or use the encoder that these plans are for."
        )


def _settings_of_common_stages(
    settings: EncoderSettings, encoder: Encoder, other: EncoderSettings
) -> dict[str, object]:
    """Settings that list a value for each stage, cut to the stages that the encoder and a network may both have."""
    if settings.backbone == "resenc":
        return {"depths": settings.stage_depths(len(encoder.strides))}
    common = min(len(settings.depths), len(other.depths))
    return {"depths": settings.depths[:common], "num_heads": settings.num_heads[:common]}


def _comparable(value: object) -> object:
    # Trained weights depend neither on the number of cells attended over nor on how they were initialised.
    free = ("max_cells", "initial_scale")
    return {k: v for k, v in value.items() if k not in free} if isinstance(value, dict) else value


def _further_stages(strides: tuple[tuple[Triple, ...], tuple[Triple, ...]]) -> tuple[str, ...]:
    """Prefixes of the tensor names of the stages that only one side has."""
    fewer, more = sorted(len(side) for side in strides)
    return tuple(stage_prefix(stage) for stage in range(fewer, more))


def _check_coverage(
    weights: Mapping[str, Tensor], target: Mapping[str, Tensor], source: str, exempt: tuple[str, ...]
) -> None:
    """Both sides must have the same tensors; names that begin with one of `exempt` may be on one side only."""
    missing = [n for n in target if n.startswith(PRETRAINED) and not n.startswith(exempt) and n not in weights]
    # Of stages that one side only has, a weight without a target is expected, and one with a target is an error.
    without_place = [n for n in weights if n.startswith(PRETRAINED) and n.startswith(exempt) == (n in target)]
    if missing:
        raise TransferError(
            f"{source} lacks {len(missing)} tensors of the network, such as {missing[:3]}: "
            "it is damaged or was written by an incompatible version; pretrain again"
        )
    if without_place:
        raise TransferError(
            f"{source} holds {len(without_place)} tensors that the network has no place for, such as "
            f"{without_place[:3]}, in parts that both have according to its settings and strides: these do not belong "
            "to the weights; pretrain again"
        )


def _adapt_channels(weight: Tensor, channels: int, image_channels: int) -> tuple[Tensor, str]:
    """Filters (features, channels, kz, ky, kx) for other input channels; also describes what was done."""
    pretrained = weight.shape[1]
    if channels == pretrained and image_channels == channels:
        return weight, ""
    mean = weight.mean(1, keepdim=True) * (pretrained / image_channels)
    zeros = mean.new_zeros(weight.shape[0], channels - image_channels, *weight.shape[2:])
    change = f"{pretrained} to {image_channels} image channels"
    if channels > image_channels:
        change += f", {channels - image_channels} further channels zero"
    return torch.cat([mean.expand(-1, image_channels, -1, -1, -1), zeros], dim=1), change


def _parts(names: list[str]) -> str:
    """The parts of the network that tensors belong to, each with their number."""
    return ", ".join(f"{part} ({count})" for part, count in Counter(map(part_of, names)).items())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} million"
