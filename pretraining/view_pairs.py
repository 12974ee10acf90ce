"""Two views of every crop of a batch, and what the first view attends to in the Domain Invariance Module.

The first view has a partner: the crop of the other modality, or a pseudo-pair, the same crop in a random contrast. The
second view has none, as in fine-tuning. No partner is therefore seen by both views, from which they could be matched
without looking at the crop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pretraining.collections.collection import DOMAINS
from pretraining.configuration import Configuration
from pretraining.contrast import apply_contrast, draw_contrast
from pretraining.views import View, ViewParameters, ViewSettings, apply_view, draw_intensity, draw_view, previous_crop


@dataclass(frozen=True)
class Views:
    """Views of a batch.

    Attributes:
        views: by modality, the first views of all crops and then the second views (2B, ...).
        paired: number of views, counted from the first, that have a partner: 0, B or 2B.
        partners: of these (paired, 1, z, y, x) by modality; None where CT and MR views are each other's partners.
    """

    views: dict[str, View]
    paired: int
    partners: dict[str, Tensor] | None


def two_views(
    crops: Mapping[str, Tensor],
    turnable: Mapping[str, Tensor],
    registered: Tensor,
    configuration: Configuration,
    generators: Sequence[torch.Generator],
    other_crops: Callable[[Tensor], Tensor | None] = previous_crop,
) -> Views:
    """Two views of each crop of each modality.

    Where a view has a partner, CT and MR share its cut-outs, and if they are registered also its quarter turns, so that
    they stay registered. Intensities always differ.

    Args:
        crops: (B, 1, z, y, x) by modality.
        turnable: which crops may be turned, bool (B,) by modality, on the CPU; equal for registered crops.
        registered: whether CT and MR of each sample are registered, bool (B,), on the CPU.
        configuration: settings of the run.
        generators: one per sample.
        other_crops: see :func:`apply_view`.
    """
    settings = ViewSettings(
        corrupted_share=configuration.corrupted_share,
        masking=configuration.masking,
        cell=configuration.mask_cells,
        rotate=configuration.quarter_turns,
    )
    numbers_paired = (0, 1)[: 1 + (configuration.second_view == "paired")] if configuration.pairs_views else ()
    views: dict[str, list[View]] = {name: [] for name in crops}
    partners: dict[str, list[Tensor]] = {name: [] for name in crops}
    for number in range(2):
        geometry = _draw_geometry(crops, turnable, registered, settings, generators, number in numbers_paired)
        for name, images in crops.items():
            intensity = draw_intensity(settings, generators)
            contrast, rendered = None, None
            if configuration.random_contrast:
                contrast = draw_contrast(generators)
                draws = torch.stack([torch.rand((), generator=generator) for generator in generators])
                rendered = draws < configuration.random_contrast
            view = apply_view(images, geometry[name], intensity, generators, other_crops, contrast, rendered)
            views[name].append(view)
        if number in numbers_paired and _needs_partners(configuration):
            current_views = {name: pair[number] for name, pair in views.items()}
            for name, images in _partners(current_views, registered, configuration, generators).items():
                partners[name].append(images)
    count = len(numbers_paired) * len(registered)
    joined = {name: torch.cat(images) for name, images in partners.items()} if any(partners.values()) else None
    return Views({name: _join(pair) for name, pair in views.items()}, count, joined)


def _draw_geometry(
    crops: Mapping[str, Tensor],
    turnable: Mapping[str, Tensor],
    registered: Tensor,
    settings: ViewSettings,
    generators: Sequence[torch.Generator],
    paired: bool,
) -> dict[str, ViewParameters]:
    """Turns and cut-outs of a view of each modality, shared as far as paired views need it."""
    z, y, x = next(iter(crops.values())).shape[2:]
    geometry: dict[str, ViewParameters] = {}
    for name in crops:
        parameters = draw_view((z, y, x), settings, generators)
        if paired and geometry:
            shared = next(iter(geometry.values()))
            parameters = replace(shared, turns=torch.where(registered, shared.turns, parameters.turns))
        geometry[name] = replace(parameters, turns=torch.where(turnable[name], parameters.turns, 0))
    return geometry


def _needs_partners(configuration: Configuration) -> bool:
    complementary = configuration.complementary_masks and configuration.masking == "cells"
    return configuration.partner == "pseudo_pair" or complementary


def _partners(
    views: Mapping[str, View], registered: Tensor, configuration: Configuration, generators: Sequence[torch.Generator]
) -> dict[str, Tensor]:
    """What each view attends to, (B, 1, z, y, x) by modality.

    A registered crop of the other modality, or a rendering of the crop itself, shows what is cut out of the crop, if
    masks are complementary. A crop that is not registered is the other modality's view as it is.
    """
    is_registered = registered.to(next(iter(views.values())).target.device).reshape(-1, 1, 1, 1, 1)
    partners = {}
    for name, view in views.items():
        other = views[next(domain for domain in DOMAINS if domain != name)]
        mask = ~view.mask if configuration.complementary_masks else view.mask
        aligned = other.target.masked_fill(mask, 0.0)
        unaligned = other.corrupted
        if configuration.partner == "pseudo_pair":
            unaligned = apply_contrast(view.target, draw_contrast(generators)).masked_fill(mask, 0.0)
        partners[name] = torch.where(is_registered, aligned, unaligned)
    return partners


def _join(views: list[View]) -> View:
    return View(*(torch.cat(parts) for parts in zip(*views, strict=True)))
