"""The losses of one step: views of a batch, predictions, proxy losses, statistics of tokens, and health measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretraining.collections.collection import DOMAINS
from pretraining.configuration import Configuration
from pretraining.model import Level, Outputs
from pretraining.monitoring.health import attention_difference, attention_entropy
from pretraining.processes import SINGLE_PROCESS, Processes
from pretraining.proxy_tasks import proxy_tasks
from pretraining.randomness import derived_seed, sample_generators, step_generator
from pretraining.schedule import density_weight
from pretraining.token_statistics import (
    DensityAverages,
    LevelSamples,
    density_health,
    density_levels,
    update_averages,
)
from pretraining.view_pairs import Views, two_views
from pretraining.views import View

# Purposes of the generators of a step; those of validation are offset, so that it shares none with training.
VIEWS, DENSITY, TOKENS, NETWORK = 0, 1, 2, 3
VALIDATION = 16


@dataclass(frozen=True)
class Evaluation:
    """Losses of one batch, and the tensors they were computed from.

    Attributes:
        losses: unweighted, by name, of the batch of all processes.
        total: weighted sum, to be minimised.
        averages: running averages of the density loss after this batch.
        health: detached scalars for monitoring.
        views: for `CT` and `MR`, both views of every crop of this process along the batch axis.
        reconstructions: of these views (2B, 1, z, y, x).
    """

    losses: dict[str, Tensor]
    total: Tensor
    averages: DensityAverages
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
    averages: DensityAverages | None,
    validation: bool = False,
    processes: Processes = SINGLE_PROCESS,
) -> Evaluation:
    """Losses of one batch; a function of the weights, the batch, the seed, the step and the running averages.

    A validation encodes every view as a single image, as in fine-tuning, measures density matching at all levels, and
    encodes the views once more in pairs, only for the measures of pairs.

    Args:
        model: the model; in training mode its stochastic depth draws from torch's generator, which is seeded here.
        batch: `ct` and `mr`, or one of them, each (B, 1, z, y, x); `paired` (B,), which of them are co-located, and
            `ct_turnable` and `mr_turnable` (B,), which may be turned, on the CPU: no value is read from the device in a
            training step.
        configuration: settings of the run.
        step: steps taken so far; in a validation the index of the batch, which only seeds its draws.
        averages: running averages of the density loss, None at the beginning.
        validation: draw from other random streams than training, and weight density matching fully.
        processes: those that train together; all of them must call this, each with its part of the batch.
    """
    offset = VALIDATION if validation else 0
    seed = configuration.seed
    # Stochastic depth is the only draw that depends on how the batch is divided: each process has its own seed.
    rank_key = (processes.rank,) if processes.rank else ()
    torch.manual_seed(derived_seed(seed, step, NETWORK + offset, *rank_key))
    crops: dict[str, Tensor] = {name: batch[name.lower()] for name in DOMAINS if name.lower() in batch}
    first = next(iter(crops.values()))
    numbers = range(processes.rank * len(first), (processes.rank + 1) * len(first))
    generators = sample_generators(seed, step, VIEWS + offset, numbers)
    turnable: dict[str, Tensor] = {name: batch[f"{name.lower()}_turnable"] for name in crops}
    views = two_views(crops, turnable, batch["paired"], configuration, generators, processes.other_crops)
    outputs, pairs = _encode(model, views, validation, first.device.type)

    losses, health = proxy_tasks(views.views, outputs, turnable, batch["paired"], configuration, processes)
    health |= _pair_health(pairs, batch["paired"], processes)
    levels, images = _levels(outputs, pairs, views)
    required = validation or any(configuration.loss_weight(name) for name in ("density", "variance", "covariance"))
    matches = {}
    if required:
        samples = LevelSamples.draw(levels, images, configuration, step, TOKENS + offset, numbers, processes)
        losses |= samples.regularity()
        chosen = density_levels(list(levels), configuration) if configuration.loss_weight("density") else []
        measured = [name for name in levels if name != "stage_0"] if validation else chosen
        if len(crops) == len(DOMAINS):
            generator = step_generator(seed, step, DENSITY + offset)
            matches = {level: samples.match_densities(level, averages, generator) for level in measured}
        if chosen:
            losses["density"] = torch.stack([matches[level].loss for level in chosen]).mean()
        health |= density_health(matches)
        if validation:
            health |= samples.ranks()
    total = torch.zeros((), device=first.device)
    for name, loss in losses.items():
        weight = configuration.loss_weight(name)
        if name == "density" and not validation:
            # In validation, `step` is the index of a batch and says nothing about the warm-up.
            weight = density_weight(step, configuration)
        total = total + weight * loss
    averages = averages or {} if validation else update_averages(averages, matches)
    reconstructions = {name: prediction.reconstruction for name, prediction in outputs.predictions.items()}
    return Evaluation(losses, total, averages, health, views.views, reconstructions)


def _encode(model: nn.Module, views: Views, validation: bool, device: str) -> tuple[Outputs, Outputs]:
    """Outputs for the views, which are single images in a validation, and those with the measures of pairs."""
    corrupted = {name: view.corrupted for name, view in views.views.items()}
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        if not validation:
            outputs = model(corrupted, views.paired, views.partners)
            return outputs, outputs
        outputs = model(corrupted)
        if not views.paired:
            return outputs, outputs
        first = {name: images[: views.paired] for name, images in corrupted.items()}
        return outputs, model(first, views.paired, views.partners, need_weights=True)


def _levels(outputs: Outputs, pairs: Outputs, views: Views) -> tuple[dict[str, Level], dict[str, dict[str, Tensor]]]:
    """Tokens of all levels, and what their crops show, by level and modality."""
    levels = dict(outputs.levels)
    if "paired" in pairs.levels:
        levels["paired"] = pairs.levels["paired"]
    images: dict[str, dict[str, Tensor]] = {}
    for name, level in levels.items():
        images[name] = {}
        for modality, tokens in level.tokens.items():
            target = views.views[modality].target
            images[name][modality] = target[: len(tokens)] if name == "paired" else target[-len(tokens) :]
    return levels, images


def _pair_health(pairs: Outputs, registered: Tensor, processes: Processes) -> dict[str, Tensor]:
    """Measures of the Domain Invariance Module; those of its attention only if its weights were kept."""
    health: dict[str, Tensor] = {}
    if pairs.change is not None:
        health["dim_change"] = processes.gather(pairs.change.detach()[None]).mean()
    if pairs.fused is not None and pairs.fused.ct_weights:
        fused = pairs.fused
        health["attention_entropy"] = attention_entropy(fused.ct_weights + fused.mr_weights)
        # All views of every crop are along the batch axis.
        views = len(fused.ct) // len(registered)
        difference = attention_difference(fused.ct_weights, fused.mr_weights, registered.repeat(views))
        if difference is not None:
            health["attention_difference"] = difference
    return health
