"""Draws two views of every crop, and the partner that the first view attends to in the Domain Invariance Module.

The partner is the crop of the other modality, or a pseudo-pair, the same crop in a random contrast. The second view has
none, as in fine-tuning. If both views saw the same partner, they could be matched by the partner, without looking at
the crop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnunetv2_swinfuse.host_copies import send
from nnunetv2_swinfuse.random_contrast import apply_contrast, draw_contrast
from pretraining.collections.collection import DOMAINS
from pretraining.configuration import Configuration
from pretraining.views import View, ViewParameters, ViewSettings, apply_view, draw_intensity, draw_view, previous_crop


@dataclass(frozen=True)
class Views:
    """Views of a batch.

    Attributes:
        views: by modality, the first views of all crops and then the second views (2B, ...).
        paired_count: number of leading views that have a partner: 0, B or 2B.
        partners: by modality, the partners of these views (paired_count, 1, z, y, x); None where the CT and the MR view
            are each other's partner.
    """

    views: dict[str, View]
    paired_count: int
    partners: dict[str, Tensor] | None


def two_views(
    crops: Mapping[str, Tensor],
    turnable: Mapping[str, Tensor],
    registered: Tensor,
    configuration: Configuration,
    generators: Sequence[torch.Generator],
    other_crops: Callable[[Tensor], Tensor | None] = previous_crop,
    inside: Mapping[str, Tensor] | None = None,
) -> Views:
    """Two views of each crop of each modality.

    Where a view has a partner, CT and MR share its cut-outs, and if they are registered also its quarter turns, so that
    they stay registered. Intensities always differ. Of a second view without a partner, nothing may be cut out.

    Args:
        crops: (B, 1, z, y, x) by modality.
        turnable: which crops may be turned, bool (B,) by modality, on the CPU; equal for registered crops.
        registered: whether CT and MR of each sample are registered, bool (B,), on the CPU.
        configuration: settings of the run.
        generators: one per sample.
        other_crops: returns another crop of the batch for each crop, from which cut-out blocks may be filled, or None
            if there is no other; see :func:`apply_view`.
        inside: by modality, the part of each crop that is no padding (B, 3, 2); see :func:`apply_view`.
    """
    settings = ViewSettings(
        corrupted_share=configuration.corrupted_share,
        masking=configuration.masking,
        cell=configuration.mask_cells,
        rotate=configuration.quarter_turns,
    )
    views_with_partner: tuple[int, ...] = ()
    if configuration.pairs_views:
        views_with_partner = (0, 1) if configuration.second_view == "paired" else (0,)
    views: dict[str, list[View]] = {name: [] for name in crops}
    partners: dict[str, list[Tensor]] = {name: [] for name in crops}
    for view_index in range(2):
        has_partner = view_index in views_with_partner
        geometry = _draw_geometry(crops, turnable, registered, settings, generators, has_partner)
        if view_index == 1 and not has_partner and configuration.intact_second_views:
            geometry = {
                name: _leave_intact(parameters, configuration.intact_second_views, generators)
                for name, parameters in geometry.items()
            }
        for name, images in crops.items():
            intensity = draw_intensity(settings, generators)
            contrast, has_contrast = None, None
            if configuration.random_contrast:
                contrast = draw_contrast(generators)
                has_contrast = _draw_share(configuration.random_contrast, generators)
            views[name].append(
                apply_view(
                    images, geometry[name], intensity, generators, other_crops, contrast, has_contrast,
                    None if inside is None else inside[name],
                )
            )  # fmt: skip
        if has_partner and _needs_partners(configuration):
            current_views = {name: pair[view_index] for name, pair in views.items()}
            for name, images in _partners(current_views, registered, configuration, generators).items():
                partners[name].append(images)
    paired_count = len(views_with_partner) * len(registered)
    joined_partners = None
    if any(partners.values()):
        joined_partners = {name: torch.cat(images) for name, images in partners.items()}
    return Views({name: _join(pair) for name, pair in views.items()}, paired_count, joined_partners)


def _draw_geometry(
    crops: Mapping[str, Tensor],
    turnable: Mapping[str, Tensor],
    registered: Tensor,
    settings: ViewSettings,
    generators: Sequence[torch.Generator],
    has_partner: bool,
) -> dict[str, ViewParameters]:
    """Quarter turns and cut-outs of one view of each modality.

    Views with a partner share their cut-outs, and if they are registered also their turns.
    """
    z, y, x = next(iter(crops.values())).shape[2:]
    geometry: dict[str, ViewParameters] = {}
    for name in crops:
        parameters = draw_view((z, y, x), settings, generators)
        if has_partner and geometry:
            shared = next(iter(geometry.values()))
            parameters = replace(shared, turns=torch.where(registered, shared.turns, parameters.turns))
        geometry[name] = replace(parameters, turns=torch.where(turnable[name], parameters.turns, 0))
    return geometry


def _leave_intact(parameters: ViewParameters, share: float, generators: Sequence[torch.Generator]) -> ViewParameters:
    """Cuts nothing out of a share of the views, on average; the others stay as drawn."""
    intact = _draw_share(share, generators)
    return replace(parameters, mask=parameters.mask & ~intact.reshape(-1, 1, 1, 1, 1))


def _draw_share(share: float, generators: Sequence[torch.Generator]) -> Tensor:
    """True with the probability `share`, bool (B,): one draw of each generator."""
    return torch.stack([torch.rand((), generator=generator) for generator in generators]) < share


def _needs_partners(configuration: Configuration) -> bool:
    complementary = configuration.complementary_masks and configuration.masking == "cells"
    return configuration.partner == "pseudo_pair" or complementary


def _partners(
    views: Mapping[str, View], registered: Tensor, configuration: Configuration, generators: Sequence[torch.Generator]
) -> dict[str, Tensor]:
    """The partners of one view of each crop, (B, 1, z, y, x) by modality.

    The partner of a registered crop is the other modality's crop. That of another crop is the other modality's view,
    corrupted as it is, or with pseudo-pairs the crop itself in a random contrast. If masks are complementary,
    registered partners and pseudo-pairs show only what is cut out of the crop.
    """
    device = next(iter(views.values())).target.device
    is_registered = send(registered, device).reshape(-1, 1, 1, 1, 1)
    partners = {}
    for name, view in views.items():
        other = views[next(domain for domain in DOMAINS if domain != name)]
        mask = ~view.mask if configuration.complementary_masks else view.mask
        registered_partner = other.target.masked_fill(mask, 0.0)
        other_partner = other.corrupted
        if configuration.partner == "pseudo_pair":
            other_partner = apply_contrast(view.target, draw_contrast(generators)).masked_fill(mask, 0.0)
        partners[name] = torch.where(is_registered, registered_partner, other_partner)
    return partners


def _join(views: list[View]) -> View:
    return View(*(torch.cat(parts) for parts in zip(*views, strict=True)))
