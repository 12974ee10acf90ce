"""Losses of the proxy tasks: inpainting, contrast between views and modalities, distillation, rotation.

All are of the whole batch, from tensors gathered from all processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_swinfuse.host_copies import send
from pretraining.configuration import Configuration
from pretraining.losses.consistency import (
    adjusted_correlation,
    consistency,
    intraclass_correlation,
    place_moments,
    undo_turns,
    view_moments,
)
from pretraining.losses.contrastive import contrastive_loss, cross_modal_loss
from pretraining.losses.inpainting import error_sums, loss_from_sums, visible_mean
from pretraining.losses.rotation import rotation_accuracy, rotation_loss
from pretraining.model import Outputs
from pretraining.processes import Processes
from pretraining.views import View


class Results(NamedTuple):
    """Losses and health measures, by name."""

    losses: dict[str, Tensor]
    health: dict[str, Tensor]


class Compared(NamedTuple):
    """Two views of crops that show the same places, or CT and MR that do.

    Attributes:
        first, second: feature maps of each stage, (B, C, z, y, x).
        first_turns, second_turns: quarter turns (B,), on the CPU.
        inside: which voxels of the crops, not turned, are compared: no padding, and with `--compared_places visible` no
            cut-outs of either view (B, 1, Z, Y, X).
    """

    first: Sequence[Tensor]
    second: Sequence[Tensor]
    first_turns: Tensor
    second_turns: Tensor
    inside: Tensor


def proxy_tasks(
    views: Mapping[str, View],
    outputs: Outputs,
    turnable: Mapping[str, Tensor],
    registered: Tensor,
    configuration: Configuration,
    processes: Processes,
) -> Results:
    """Losses of the proxy tasks with a weight above 0, and their health measures.

    Args:
        views: views of each modality, the first views of all crops and then the second views.
        outputs: outputs of the model for these views.
        turnable: which crops may be turned, bool (B,) by modality, on the CPU.
        registered: whether CT and MR of each crop are registered, bool (B,), on the CPU.
        configuration: settings of the run.
        processes: those that train together.
    """
    losses: dict[str, Tensor] = {}
    health: dict[str, Tensor] = {}
    if configuration.loss_weight("inpainting"):
        sums = {name: _batch_sums(p.reconstruction, views[name], processes) for name, p in outputs.predictions.items()}
        losses["inpainting"] = _mean(loss_from_sums(s, configuration.visible_weight) for s in sums.values())
        health |= _inpainting_health(views, sums, processes)
    if configuration.loss_weight("contrastive"):
        by_vectors = configuration.contrastive_loss == "nt_xent"
        compare = _contrast_vectors if by_vectors else _contrast_maps
        compared = compare(views, outputs, registered, configuration, processes)
        losses |= compared.losses
        health |= compared.health
    if configuration.loss_weight("distillation"):
        losses["distillation"] = _mean(
            _difference(_two_views(views[name], maps, detach_first=True), torch.ones_like(registered), processes)
            for name, maps in outputs.features.items()
        )
    if configuration.loss_weight("rotation"):
        losses["rotation"], rotation_health = _rotation(views, outputs, turnable, processes)
        health |= rotation_health
    return Results(losses, health)


def _rotation(
    views: Mapping[str, View], outputs: Outputs, turnable: Mapping[str, Tensor], processes: Processes
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the rotation loss, a mean over modalities that have turnable crops, and its measures for the log.

    The measures are accuracies and the shares of turnable crops.
    """
    losses, accuracies, shares = {}, {}, {}
    for name, prediction in outputs.predictions.items():
        logits = processes.gather(prediction.turns.float())
        turns = send(processes.gather(views[name].turns), logits.device)
        # Gathered on the CPU, where it can be looked at without waiting for the device.
        on_cpu = processes.gather(turnable[name].repeat(2))
        chosen = send(on_cpu, logits.device)
        losses[name] = rotation_loss(logits, turns, chosen)
        shares[name] = chosen.float().mean()
        if bool(on_cpu.any()):
            accuracies[name] = rotation_accuracy(logits.detach(), turns, chosen)
    health = _mean_and_parts("turnable_share", shares)
    if accuracies:
        health |= _mean_and_parts("rotation_accuracy", accuracies)
    return _mean(losses[name] for name in accuracies or losses), health


def _contrast_vectors(
    views: Mapping[str, View], outputs: Outputs, registered: Tensor, configuration: Configuration, processes: Processes
) -> Results:
    """NT-Xent between the two views of each crop, and between CT and MR of registered crops."""
    temperature = configuration.temperature
    vectors = {name: processes.gather_views(p.projection.float()).chunk(2) for name, p in outputs.predictions.items()}
    losses = {"contrastive": _mean(contrastive_loss(first, second, temperature) for first, second in vectors.values())}
    if configuration.loss_weight("cross_modal"):
        registered = processes.gather(registered)
        (ct_first, ct_second), (mr_first, mr_second) = vectors["CT"], vectors["MR"]
        # Paired views contain their partner, so that CT and MR could be matched without knowing the anatomy. Paired
        # views of the same number also share turns and cut-outs.
        matches = (
            [(ct_second, mr_second)]
            if configuration.second_view == "single_image"
            else [(ct_first, mr_second), (ct_second, mr_first)]
        )
        values = [cross_modal_loss(ct, mr, registered, temperature) for ct, mr in matches]
        measured = [value for value in values if value is not None]
        if measured:
            losses["cross_modal"] = _mean(measured)
    return Results(losses, {})


def _contrast_maps(
    views: Mapping[str, View], outputs: Outputs, registered: Tensor, configuration: Configuration, processes: Processes
) -> Results:
    """Differences between the two views of each crop, and between CT and MR of registered crops.

    VICReg's invariance term, or one minus one of the intraclass correlations.
    """
    visible = configuration.compared_places == "visible"
    all_registered = processes.gather(registered)

    def measure(compared: Compared, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss over the chosen crops, and the correlations by their names in the log."""
        loss, correlations = None, {}
        for name, (recorded, correlate) in CORRELATIONS.items():
            if name == "adjusted_correlation" and len(all_registered) == 1:
                # A single crop has no other to be compared with.
                continue
            is_loss = configuration.contrastive_loss == name
            with torch.set_grad_enabled(is_loss and torch.is_grad_enabled()):
                correlation = correlate(compared, chosen, processes)
            loss = 1 - correlation if is_loss else loss
            correlations[recorded] = correlation.detach()
        return _difference(compared, chosen, processes) if loss is None else loss, correlations

    everything = torch.ones_like(registered)
    by_modality = [
        measure(_two_views(views[name], maps, visible), everything) for name, maps in outputs.features.items()
    ]
    losses, correlations = zip(*by_modality, strict=True)
    results = Results({"contrastive": _mean(losses)}, {})
    for name in correlations[0]:
        results.health[f"contrastive_{name}"] = _mean(values[name] for values in correlations)
    if configuration.loss_weight("cross_modal") and bool(all_registered.any()):
        # Second views only: unless they are paired like the first, they contain no partner.
        crops = len(registered)
        ct_maps, mr_maps = ([m[crops:] for m in outputs.features[name]] for name in ("CT", "MR"))
        ct_turns, mr_turns = (views[name].turns[crops:] for name in ("CT", "MR"))
        ct_shown, mr_shown = (_shown(views[name], visible)[crops:] for name in ("CT", "MR"))
        compared = Compared(ct_maps, mr_maps, ct_turns, mr_turns, ct_shown & mr_shown)
        results.losses["cross_modal"], values = measure(compared, registered)
        results.health.update({f"cross_modal_{name}": value for name, value in values.items()})
    return results


def _two_views(view: View, features: list[Tensor], visible: bool = False, detach_first: bool = False) -> Compared:
    """Both views of each crop; optionally without a gradient to the first."""
    first, second = zip(*(m.chunk(2) for m in features), strict=True)
    if detach_first:
        first = tuple(m.detach() for m in first)
    first_turns, second_turns = view.turns.chunk(2)
    first_shown, second_shown = _shown(view, visible).chunk(2)
    return Compared(first, second, first_turns, second_turns, first_shown & second_shown)


def _shown(view: View, visible: bool) -> Tensor:
    """Which voxels of the views, not turned, are no padding, and if `visible` not cut out either."""
    return undo_turns(~view.hidden if visible else view.inside, view.turns)


def _difference(compared: Compared, chosen: Tensor, processes: Processes) -> Tensor:
    """Mean squared difference of the chosen crops (B,): the mean over the stages."""
    by_stage = [consistency(*maps) for maps in _stages(compared)]
    differences = processes.gather(torch.stack(by_stage).mean(0))
    weights = send(processes.gather(chosen), differences.device, differences.dtype)
    return (differences * weights).sum() / weights.sum()


def _correlation(compared: Compared, chosen: Tensor, processes: Processes) -> Tensor:
    """Intraclass correlation of features at the same places of the chosen crops (B,): the mean over the stages."""
    by_stage = []
    for maps in _stages(compared):
        moments = view_moments(*maps)
        counted = send(chosen, moments.device, moments.dtype)[:, None]
        by_stage.append(intraclass_correlation(processes.gather(moments * counted)))
    return _mean(by_stage)


def _adjusted_correlation(compared: Compared, chosen: Tensor, processes: Processes) -> Tensor:
    """The same relative to other crops at the same places, of all crops of all processes."""
    counted, *same = map(processes.gather, (chosen, compared.first_turns, compared.second_turns, compared.inside))
    by_stage = []
    for first, second, *_ in _stages(compared):
        moments = place_moments(processes.gather(first), processes.gather(second), *same)
        by_stage.append(adjusted_correlation(moments, send(counted, moments.device, moments.dtype)))
    return _mean(by_stage)


# By the name of the loss: the name in the log, after that of what is compared, and the function.
CORRELATIONS = {
    "correlation": ("icc", _correlation),
    "adjusted_correlation": ("icc_adjusted", _adjusted_correlation),
}


def _stages(compared: Compared) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Arguments of :func:`consistency` for all stages but the finest, which shows little but voxels."""
    first, second, *same = compared
    for a, b in zip(first[1:] or first, second[1:] or second, strict=True):
        yield (a, b, *same)


def _batch_sums(reconstruction: Tensor, view: View, processes: Processes) -> Tensor:
    """Sums of the reconstruction's errors over the batch of all processes, without padding; see :func:`error_sums`."""
    return processes.gather(error_sums(reconstruction, view.target, view.mask, view.inside)[None]).sum(0)


@torch.no_grad()
def _inpainting_health(
    views: Mapping[str, View], sums: Mapping[str, Tensor], processes: Processes
) -> dict[str, Tensor]:
    errors, mean_errors = {}, {}
    for name, view in views.items():
        # The baseline of a reconstruction: each crop's cut-outs filled with the mean of its visible voxels.
        target = view.target.float()
        fill_sums = _batch_sums(visible_mean(target, view.hidden).expand_as(target), view, processes)
        errors[name], mean_errors[name] = (loss_from_sums(s, visible_weight=0.0) for s in (sums[name], fill_sums))
    return _mean_and_parts("masked_error", errors) | _mean_and_parts("masked_error_of_mean", mean_errors)


def _mean_and_parts(name: str, by_modality: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over the modalities as `name`, and the value of each modality as `name_CT` and `name_MR`."""
    parts = {f"{name}_{modality}": value for modality, value in by_modality.items()}
    return {name: _mean(parts.values()), **parts}


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
