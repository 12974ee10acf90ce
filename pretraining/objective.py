"""The losses of one step: views of a batch, predictions, proxy losses, density matching, and health measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.encoder import PairFeatures
from nnunetv2_swinfuse.architecture.topology import Triple
from pretraining.collections.collection import DOMAINS
from pretraining.configuration import Configuration
from pretraining.losses.contrastive import contrastive_loss, cross_modal_loss
from pretraining.losses.density import DensityMatch, density_matching, update_bandwidth
from pretraining.losses.inpainting import error_sums, loss_of_sums
from pretraining.losses.rotation import rotation_accuracy, rotation_loss
from pretraining.model import Predictions
from pretraining.monitoring.health import attention_difference, attention_entropy
from pretraining.processes import SINGLE_PROCESS, Processes
from pretraining.randomness import derived_seed, sample_generators, step_generator
from pretraining.schedule import density_weight
from pretraining.views import View, ViewSettings, apply_view, draw_intensity, draw_turns, draw_view, previous_crop

# Purposes of the generators of a step; those of validation are offset, so that it shares none with training.
VIEWS, DENSITY, SINGLE_IMAGE, NETWORK = 0, 1, 2, 3
VALIDATION = 16
# With fewer tokens that show tissue, density matching uses all tokens.
MIN_FOREGROUND = 16


@dataclass(frozen=True)
class Evaluation:
    """Losses of one batch, and the tensors they were computed from.

    Attributes:
        losses: unweighted, by name, of the batch of all processes; `density` only if CT and MR were encoded together.
        total: weighted sum, to be minimised.
        bandwidth: running average of the density loss's bandwidth after this batch.
        health: detached scalars for monitoring.
        views: for `CT` and `MR`, both views of every crop of this process along the batch axis.
        reconstructions: of these views (2B, 1, z, y, x).
    """

    losses: dict[str, Tensor]
    total: Tensor
    bandwidth: Tensor | None
    health: dict[str, Tensor]
    views: dict[str, View]
    reconstructions: dict[str, Tensor]

    def values(self) -> dict[str, Tensor]:
        """All scalars: losses, `total` and health."""
        losses = {name: loss.detach() for name, loss in self.losses.items()}
        if "rotation_accuracy" not in self.health:
            # No crop could be turned: a loss of 0 would look like a success.
            losses.pop("rotation", None)
        return {"total": self.total.detach(), **losses, **self.health}

    def panels(self, sample: int = 0) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Target, corrupted, reconstruction and mask (z, y, x) of one sample of each modality."""
        return {
            name: (
                view.target[sample, 0],
                view.corrupted[sample, 0],
                self.reconstructions[name][sample, 0],
                view.mask[sample, 0],
            )
            for name, view in self.views.items()
        }


def evaluate(
    model: nn.Module,
    batch: Mapping[str, Any],
    configuration: Configuration,
    step: int,
    bandwidth: Tensor | None,
    validation: bool = False,
    processes: Processes = SINGLE_PROCESS,
) -> Evaluation:
    """Losses of one batch; a function of the weights, the batch, the seed, the step and the running bandwidth.

    Args:
        model: the model; in training mode its stochastic depth draws from torch's generator, which is seeded here.
        batch: `ct` and `mr`, or one of them, each (B, 1, z, y, x); `paired` (B,), which of them are co-located, and
            `ct_turnable` and `mr_turnable` (B,), which may be turned, on the CPU: no value is read from the device in a
            training step.
        configuration: settings of the run.
        step: steps taken so far; in a validation the index of the batch, which only seeds its draws.
        bandwidth: running average of the density loss's bandwidth, None at the beginning.
        validation: draw from other random streams than training, always encode CT and MR together, and weight density
            matching fully.
        processes: those that train together; all of them must call this, each with its part of the batch.
    """
    offset = VALIDATION if validation else 0
    seed = configuration.seed
    # Stochastic depth is the only draw that depends on how the batch is divided: each process has its own seed.
    rank_key = (processes.rank,) if processes.rank else ()
    torch.manual_seed(derived_seed(seed, step, NETWORK + offset, *rank_key))
    crops: dict[str, Tensor] = {name: batch[name.lower()] for name in DOMAINS if name.lower() in batch}
    first = next(iter(crops.values()))
    samples = range(processes.rank * len(first), (processes.rank + 1) * len(first))
    generators = sample_generators(seed, step, VIEWS + offset, samples)
    turnable: dict[str, Tensor] = {name: batch[f"{name.lower()}_turnable"] for name in crops}
    views = two_views(crops, turnable, batch["paired"], configuration, generators, processes.other_crops)
    draw = torch.rand((), generator=step_generator(seed, step, SINGLE_IMAGE + offset)).item()
    single_image = not validation and draw < configuration.single_share
    corrupted = [views[name].corrupted if name in views else None for name in DOMAINS]
    with torch.autocast(first.device.type, dtype=torch.bfloat16, enabled=first.device.type == "cuda"):
        *predicted, pair = model(*corrupted, single_image, need_weights=validation)
    predictions: dict[str, Predictions] = {n: p for n, p in zip(DOMAINS, predicted, strict=True) if p is not None}

    losses, health = _proxy_tasks(views, predictions, turnable, batch["paired"], configuration, processes)
    total = torch.zeros((), device=first.device)
    for name, loss in losses.items():
        total = total + configuration.loss_weight(name) * loss
    if pair is not None:
        health |= _pair_health(pair, batch["paired"], configuration, processes)
        if configuration.density_weight:
            generator = step_generator(seed, step, DENSITY + offset)
            match = _match_densities(pair, views, bandwidth, configuration, generator, processes)
            losses["density"] = match.loss
            # In validation, `step` is the index of a batch and says nothing about the warm-up.
            weight = configuration.density_weight if validation else density_weight(step, configuration)
            total = total + weight * match.loss
            health |= _density_health(match)
            if not validation:
                bandwidth = update_bandwidth(bandwidth, match.median_bandwidth)
    reconstructions = {name: prediction.reconstruction for name, prediction in predictions.items()}
    return Evaluation(losses, total, bandwidth, health, views, reconstructions)


def two_views(
    crops: Mapping[str, Tensor],
    turnable: Mapping[str, Tensor],
    paired: Tensor,
    configuration: Configuration,
    generators: Sequence[torch.Generator],
    other_crops: Callable[[Tensor], Tensor | None] = previous_crop,
) -> dict[str, View]:
    """Two views of each crop of each modality, concatenated along the batch axis (2B, ...).

    CT and MR of a view share quarter turns and cut-outs, so that registered crops stay registered; intensities differ.
    Crops that are not registered have turns of their own, and those that are not turnable none.

    Args:
        crops: (B, 1, z, y, x) by modality.
        turnable: bool (B,) by modality, on the CPU; equal for the crops of a registered pair.
        paired: which crops are registered, bool (B,), on the CPU.
        configuration: settings of the run.
        generators: one per sample.
        other_crops: see :func:`apply_view`.
    """
    settings = ViewSettings(
        corrupted_share=configuration.corrupted_share,
        masking=configuration.masking,
        cell=configuration.mask_cell,
        rotate=configuration.quarter_turns,
    )
    z, y, x = next(iter(crops.values())).shape[2:]
    views: dict[str, list[View]] = {name: [] for name in crops}
    for _ in range(2):
        parameters = draw_view((z, y, x), settings, generators)
        turns = parameters.turns
        for name, images in crops.items():
            own = replace(parameters, turns=torch.where(turnable[name], turns, 0))
            intensity = draw_intensity(settings, generators)
            views[name].append(apply_view(images, own, intensity, generators, other_crops))
            # Of the next modality.
            turns = torch.where(paired, turns, draw_turns(settings, generators))
    return {name: _join(both) for name, both in views.items()}


def foreground_tokens(image: Tensor, grid: Triple) -> Tensor:
    """Which cells of a grid show tissue: those whose standard deviation exceeds 5 % of the crop's.

    The air around a CT and the zeros around a skull-stripped MR are constant, so no modality needs a threshold of
    intensity.

    Args:
        image: (B, 1, z, y, x).
        grid: cells per axis.

    Returns:
        bool (B, prod(grid)).
    """
    image = image.float()
    mean, square = F.adaptive_avg_pool3d(image, grid), F.adaptive_avg_pool3d(image.square(), grid)
    deviation = (square - mean.square()).clamp_min(0).sqrt().flatten(1)
    return deviation > 0.05 * image.flatten(1).std(1, keepdim=True)


def _proxy_tasks(
    views: Mapping[str, View],
    predictions: Mapping[str, Predictions],
    turnable: Mapping[str, Tensor],
    paired: Tensor,
    configuration: Configuration,
    processes: Processes,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of the proxy tasks with a weight above 0, and their health measures, from tensors gathered once."""
    losses: dict[str, Tensor] = {}
    health: dict[str, Tensor] = {}
    if configuration.loss_weight("inpainting"):
        sums = {
            name: processes.gather(error_sums(p.reconstruction, views[name].target, views[name].mask)[None]).sum(0)
            for name, p in predictions.items()
        }
        losses["inpainting"] = _mean(loss_of_sums(s, configuration.visible_weight) for s in sums.values())
        health |= _inpainting_health(views, sums, processes)
    vectors: dict[str, Tensor] = {}
    if configuration.loss_weight("contrastive"):
        vectors = {name: processes.gather_views(p.projection.float()) for name, p in predictions.items()}
        pairs_of_views = (both.chunk(2) for both in vectors.values())
        losses["contrastive"] = _mean(
            contrastive_loss(first, second, configuration.temperature) for first, second in pairs_of_views
        )
    if configuration.loss_weight("rotation"):
        losses["rotation"], of_rotation = _rotation(views, predictions, turnable, processes)
        health |= of_rotation
    if configuration.loss_weight("cross_modal"):
        loss = cross_modal_loss(vectors["CT"], vectors["MR"], processes.gather(paired), configuration.temperature)
        if loss is not None:
            losses["cross_modal"] = loss
    return losses, health


def _rotation(
    views: Mapping[str, View],
    predictions: Mapping[str, Predictions],
    turnable: Mapping[str, Tensor],
    processes: Processes,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The rotation loss, a mean over the modalities with turnable crops, its accuracies, and the turnable shares."""
    losses, accuracies, shares = {}, {}, {}
    for name, prediction in predictions.items():
        logits, turns = processes.gather(prediction.turns.float()), processes.gather(views[name].turns)
        # Gathered on the CPU, where it can be looked at without waiting for the device.
        on_cpu = processes.gather(turnable[name].repeat(2))
        chosen = on_cpu.to(logits.device)
        losses[name] = rotation_loss(logits, turns, chosen)
        shares[name] = chosen.float().mean()
        if bool(on_cpu.any()):
            accuracies[name] = rotation_accuracy(logits.detach(), turns, chosen)
    health = _mean_and_parts("turnable_share", shares)
    if accuracies:
        health |= _mean_and_parts("rotation_accuracy", accuracies)
    return _mean(losses[name] for name in accuracies or losses), health


@torch.no_grad()
def _inpainting_health(
    views: Mapping[str, View], sums: Mapping[str, Tensor], processes: Processes
) -> dict[str, Tensor]:
    errors, mean_errors = {}, {}
    for name, view in views.items():
        errors[name] = sums[name][0].detach() / sums[name][1]
        # The baseline of a reconstruction: each crop's cut-outs filled with the mean of its visible voxels.
        target, visible = view.target.float(), (~view.mask).float()
        fill = (target * visible).sum((1, 2, 3, 4)) / visible.sum((1, 2, 3, 4)).clamp_min(1)
        of_fill = error_sums(fill.reshape(-1, 1, 1, 1, 1).expand_as(target), target, view.mask)
        filled = processes.gather(of_fill[None]).sum(0)
        mean_errors[name] = filled[0] / filled[1]
    return _mean_and_parts("masked_error", errors) | _mean_and_parts("masked_error_of_mean", mean_errors)


def _mean_and_parts(name: str, by_modality: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over the modalities as `name`, and the value of each modality as `name_CT` and `name_MR`."""
    parts = {f"{name}_{modality}": value for modality, value in by_modality.items()}
    return {name: _mean(parts.values()), **parts}


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def _pair_health(
    pair: PairFeatures, paired: Tensor, configuration: Configuration, processes: Processes
) -> dict[str, Tensor]:
    """Measures of the Domain Invariance Module; those of its attention only if its weights were kept."""
    health = {}
    if configuration.dim != "none":
        health["dim_change"] = processes.gather(pair.change.detach()[None]).mean()
    if pair.ct_weights:
        health["attention_entropy"] = attention_entropy(pair.ct_weights + pair.mr_weights)
        # Both views of every crop are along the batch axis.
        difference = attention_difference(pair.ct_weights, pair.mr_weights, paired.repeat(2))
        if difference is not None:
            health["attention_difference"] = difference
    return health


def _match_densities(
    pair: PairFeatures,
    views: Mapping[str, View],
    bandwidth: Tensor | None,
    configuration: Configuration,
    generator: torch.Generator,
    processes: Processes,
) -> DensityMatch:
    """Density matching between the outputs of the two blocks of the Domain Invariance Module, of all processes."""
    ct, ct_mask = _tokens(pair.ct_tokens, views["CT"].target, pair.grid, processes)
    mr, mr_mask = _tokens(pair.mr_tokens, views["MR"].target, pair.grid, processes)
    return density_matching(
        ct,
        mr,
        ct_mask=ct_mask,
        mr_mask=mr_mask,
        bandwidth=bandwidth,
        dimensions=configuration.density_dimensions,
        samples=configuration.density_samples,
        generator=generator,
        loss=configuration.density_loss,
    )


def _density_health(match: DensityMatch) -> dict[str, Tensor]:
    return {
        "divergence_share": match.divergence.detach() / math.log(2),
        "bandwidth": match.median_bandwidth,
        "effective_rank": match.effective_rank,
        "feature_variance": match.feature_variance,
    }


def _tokens(tokens: Tensor, image: Tensor, grid: Triple, processes: Processes) -> tuple[Tensor, Tensor]:
    """Tokens of all samples of all processes (N, C), and which show tissue (N,); all of them if hardly any do."""
    foreground = processes.gather_views(foreground_tokens(image, grid)).flatten()
    return processes.gather_views(tokens.float()).flatten(0, 1), foreground | (foreground.sum() < MIN_FOREGROUND)


def _join(views: list[View]) -> View:
    return View(*(torch.cat(parts) for parts in zip(*views, strict=True)))
