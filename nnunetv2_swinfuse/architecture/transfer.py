"""Pretrained tensors into a network: with other input channels, other strides, fewer or more stages.

Nothing is skipped in silence: every tensor ends in one list of the report, and an encoder tensor of a stage that both
sides have must be covered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.residual_transfer import adapt_kernel, name_in_network, stride_change
from nnunetv2_swinfuse.architecture.swin import MONAI_LEGACY_SUBGRIDS
from nnunetv2_swinfuse.architecture.topology import Topology, Triple

# What sees the image: the only tensors whose shape depends on its channels.
PATCH_WEIGHT = "patch_embed.proj.weight"
STEM_WEIGHT = "patch_embed.convs.0.conv.weight"
# dynamic-network-architectures registers each layer of a block by its kind and once more in a sequence.
SECOND_NAME = ".all_modules."


class TransferError(ValueError):
    """The encoder does not fit the network; the message lists what differs."""


@dataclass
class TransferReport:
    """What became of each tensor.

    Attributes:
        matched: copied as they are.
        adapted: copied after a change, with the change in words.
        fresh: tensors of the network that pretraining does not give.
        unused: pretrained tensors that the network has no place for: of further stages, or outside the encoder.
    """

    matched: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"Pretrained encoder: {len(self.matched)} tensors matched, {len(self.adapted)} adapted, "
            f"{len(self.fresh)} fresh, {len(self.unused)} unused"
        ]
        lines += [f"  adapted {name}: {how}" for name, how in self.adapted.items()]
        lines += [f"  {kind} {name} ({count})" for kind, names in (("fresh", self.fresh), ("unused", self.unused))
                  for name, count in _by_module(names).items()]  # fmt: skip
        return "\n".join(lines)


class Target(Protocol):
    """A network with a SwinFUSE encoder under the names `patch_embed` and `encoder`."""

    settings: EncoderSettings
    topology: Topology

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def transfer_encoder(
    network: Target, encoder: Encoder, image_channels: int | None = None, new_domain_invariance: bool = False
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

    Args:
        network: the network to fill.
        encoder: the pretrained encoder.
        image_channels: how many of the network's input channels are images; all when not given.
        new_domain_invariance: accept an encoder without the Domain Invariance Module; the network's stays as it is.

    Raises:
        TransferError: when sizes differ or a tensor of a common stage is not covered. Nothing is changed then.
    """
    added = new_domain_invariance and encoder.settings.domain_invariance is None
    check_settings(network.settings, encoder, ignored={"domain_invariance"} if added else set())
    target: dict[str, Tensor] = dict(network.named_parameters())
    strides = encoder.settings.topology(encoder.strides).stage_strides, network.topology.stage_strides
    report = TransferReport()
    filled: dict[str, Tensor] = {}
    adapted_merging: dict[str, Tensor] = {}
    for given_name, weight in encoder.weights.items():
        if SECOND_NAME in given_name:
            continue
        name = name_in_network(given_name, target)
        if name not in target:
            report.unused.append(name)
            continue
        adapted, steps = weight, []
        if name in (PATCH_WEIGHT, STEM_WEIGHT):
            channels = target[name].shape[1]
            adapted, how = _adapt_channels(weight, channels, channels if image_channels is None else image_channels)
            steps.append(how)
        if name == PATCH_WEIGHT:
            adapted, how = _adapt_patch(adapted, network.topology.patch_stride)
            steps.append(how)
        elif ".merging." in name:
            stage = int(name.split(".")[2])
            old, new = (sides[stage] for sides in strides)
            if old != new:
                if name not in adapted_merging:
                    prefix = name[: name.index("merging.") + len("merging.")]
                    legacy = encoder.settings.monai_legacy_merging and old == (2, 2, 2)
                    weights = sort_legacy_subgrids(encoder.weights, prefix) if legacy else encoder.weights
                    adapted_merging |= _adapt_merging(weights, prefix, old, new)
                adapted = adapted_merging[name]
                steps.append(f"stride {old} to {new}")
        elif weight.ndim == 5:
            adapted, how = adapt_kernel(adapted, tuple(target[name].shape[2:]))
            steps += [how, stride_change(name, *strides)]
        if adapted.shape != target[name].shape:
            raise TransferError(
                f"{name}: shape {tuple(weight.shape)} in {encoder.path or 'the encoder'}, "
                f"{tuple(target[name].shape)} in the network; both must be built with the same encoder settings"
            )
        filled[name] = adapted
        if any(steps):
            report.adapted[name] = ", ".join(filter(None, steps))
        else:
            report.matched.append(name)
    report.fresh = [name for name in target if name not in filled]
    report.unused += encoder.details.get("left_out", [])
    _check_coverage(report, network, strides[0], ("encoder.domain_invariance.",) if added else ())
    with torch.no_grad():
        for name, tensor in filled.items():
            target[name].copy_(tensor)
    return report


def check_settings(settings: EncoderSettings, encoder: Encoder, ignored: Set[str] = frozenset()) -> None:
    """Checks that an encoder has the sizes of a network; stages that only one of them has may differ.

    Args:
        settings: of the network.
        encoder: the encoder.
        ignored: settings that may differ.

    Raises:
        TransferError: listing what differs.
    """
    ours, theirs = settings.to_dict(), encoder.settings.to_dict()
    names = ["backbone"] if ours["backbone"] != theirs["backbone"] else list(ours)
    differing = {
        # The number of tokens attended over is no property of the weights.
        name: (theirs[name], ours[name])
        for name in names
        if name not in ignored and _comparable(ours[name]) != _comparable(theirs[name])
    }
    pretrained = _of_pretrained_stages(encoder.settings, encoder, settings)
    for name, value in _of_pretrained_stages(settings, encoder, encoder.settings).items():
        if value == pretrained.get(name):
            differing.pop(name, None)
    if differing:
        listing = "; ".join(f"{name} is {a} in the encoder, {b} in the network" for name, (a, b) in differing.items())
        raise TransferError(
            f"{encoder.path or 'the encoder'} does not fit the network: {listing}. Let the trainer take the sizes from "
            "the encoder (plans without a SwinFUSE architecture), or choose the encoder that these plans were made for."
        )


def _of_pretrained_stages(one: EncoderSettings, encoder: Encoder, other: EncoderSettings) -> dict[str, object]:
    """What settings say of each stage, for the stages that the encoder and a network may both have."""
    if one.backbone == "resenc":
        return {"depths": one.stage_depths(len(encoder.strides))}
    common = min(len(one.depths), len(other.depths))
    return {"depths": one.depths[:common], "num_heads": one.num_heads[:common]}


def _comparable(value: object) -> object:
    return {k: v for k, v in value.items() if k != "max_cells"} if isinstance(value, dict) else value


def _check_coverage(
    report: TransferReport, network: Target, source_merges: tuple[Triple, ...], new: tuple[str, ...]
) -> None:
    common = min(len(network.topology.stage_strides), len(source_merges))
    further = tuple(f"encoder.stages.{stage}." for stage in range(common, len(network.topology.stage_strides))) + new
    missing = [
        name
        for name in report.fresh
        if name.startswith(("patch_embed.", "encoder.")) and not (further and name.startswith(further))
    ]
    if missing:
        raise TransferError(
            f"the encoder file lacks {len(missing)} tensors of the network, such as {missing[:3]}: "
            "it is damaged or was written by an incompatible version; pretrain again"
        )


def _adapt_channels(weight: Tensor, channels: int, image_channels: int) -> tuple[Tensor, str]:
    """Filters (features, channels, kz, ky, kx) for other input channels; says what was done."""
    pretrained = weight.shape[1]
    if channels == pretrained and image_channels == channels:
        return weight, ""
    mean = weight.mean(1, keepdim=True) * (pretrained / image_channels)
    further = mean.new_zeros(weight.shape[0], channels - image_channels, *weight.shape[2:])
    how = f"{pretrained} to {image_channels} image channels"
    if channels > image_channels:
        how += f", {channels - image_channels} further channels zero"
    return torch.cat([mean.expand(-1, image_channels, -1, -1, -1), further], dim=1), how


def _adapt_patch(weight: Tensor, stride: Triple) -> tuple[Tensor, str]:
    """Patch filters (features, channels, kz, ky, kx) for another stride; says what was done."""
    kernel = tuple(weight.shape[2:])
    for axis in range(3):
        old, new = kernel[axis], stride[axis]
        if new < old:
            weight = weight.sum(2 + axis, keepdim=True)
        elif new > old:
            weight = weight.repeat_interleave(new, 2 + axis) / new
    return weight, f"patch {kernel} to {stride}" if kernel != stride else ""


def _adapt_merging(weights: Mapping[str, Tensor], prefix: str, old: Triple, new: Triple) -> dict[str, Tensor]:
    """Norm and reduction of a patch merging for another stride.

    The norm's scale is taken into the reduction before folding, and its shift is chosen so that it contributes to the
    output what it did: exact for maps that are constant along the folded axes, as long as the reduction's equations
    can be solved, which random weights allow (as many inputs as outputs or more).
    """
    reduction = weights[prefix + "reduction.weight"].double()
    scale, shift = weights[prefix + "norm.weight"].double(), weights[prefix + "norm.bias"].double()
    outputs = len(reduction)
    kernel = (reduction * scale).reshape(outputs, *old, -1)
    for axis in range(3):
        if new[axis] < old[axis]:
            kernel = kernel.sum(1 + axis, keepdim=True)
        elif new[axis] > old[axis]:
            kernel = kernel.repeat_interleave(new[axis], 1 + axis) / new[axis]
    folded = kernel.reshape(outputs, -1)
    # The smallest shift that gives the pretrained constant: reduction @ shift.
    folded_shift = torch.linalg.lstsq(folded, (reduction @ shift)[:, None], driver="gelsd").solution[:, 0]
    adapted = {"reduction.weight": folded, "norm.weight": torch.ones_like(folded_shift), "norm.bias": folded_shift}
    return {prefix + name: value.to(weights[prefix + name].dtype) for name, value in adapted.items()}


def sort_legacy_subgrids(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A patch merging of MONAI's legacy sub-grids as one of all eight, those it never saw with weight zero.

    Norm's scale and shift are taken into the reduction's share of each sub-grid. The norm's statistics then count every
    sub-grid once: the same for maps that are constant along the axes, an approximation otherwise.
    """
    reduction, scale, shift = (weights[prefix + name] for name in ("reduction.weight", "norm.weight", "norm.bias"))
    channels = len(scale) // len(MONAI_LEGACY_SUBGRIDS)
    kernel = reduction.new_zeros(len(reduction), 2, 2, 2, channels)
    offset = reduction @ shift
    scaled = (reduction * scale).unflatten(-1, (-1, channels))
    for slot, (z, y, x) in enumerate(MONAI_LEGACY_SUBGRIDS):
        kernel[:, z, y, x] += scaled[:, slot]
    flat = kernel.flatten(1)
    flat_shift = torch.linalg.lstsq(flat.double(), offset[:, None].double(), driver="gelsd").solution[:, 0]
    values = {"reduction.weight": flat, "norm.weight": torch.ones_like(scale), "norm.bias": flat_shift.to(shift.dtype)}
    return {prefix + name: value for name, value in values.items()}


def _by_module(names: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        module = ".".join(name.split(".")[:3] if name.startswith("encoder.stages.") else name.split(".")[:1])
        counts[module] = counts.get(module, 0) + 1
    return counts
