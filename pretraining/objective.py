"""One training or validation step up to the total loss: draws views, runs the model, computes losses and measures."""

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
from pretraining.monitoring.panels import ReconstructedView
from pretraining.processes import SINGLE_PROCESS, Processes
from pretraining.proxy_tasks import proxy_tasks
from pretraining.randomness import derived_seed, sample_generators, step_generator
from pretraining.schedule import density_weight
from pretraining.token_statistics import (
    DensityAverages,
    LevelSamples,
    density_health,
    matched_levels,
    update_averages,
)
from pretraining.view_pairs import Views, two_views
from pretraining.views import View

# Keys that give each kind of draw in a step its own random stream. Validation adds VALIDATION, so that it never shares
# a stream with training.
VIEWS, DENSITY, TOKENS, NETWORK = 0, 1, 2, 3
VALIDATION = 16


@dataclass(frozen=True)
class Evaluation:
    """Losses of one batch, and the tensors they were computed from.

    Attributes:
        losses: unweighted, by name, of the batch of all processes.
        total: weighted sum, to be minimised.
        averages: running averages of the density loss's bandwidth and floor after this batch, by level.
        health: detached scalars for monitoring, by name.
        views: by modality; the first views of all crops of this process, then the second views, along the batch axis.
        reconstructions: by modality, of these views (2B, 1, z, y, x).
    """

    losses: dict[str, Tensor]
    total: Tensor
    averages: DensityAverages
    health: dict[str, Tensor]
    views: dict[str, View]
    reconstructions: dict[str, Tensor]

    def scalars(self) -> dict[str, Tensor]:
        """All scalars: losses, `total` and health."""
        losses = {name: loss.detach() for name, loss in self.losses.items()}
        if "rotation_accuracy" not in self.health:
            # No crop could be turned: a loss of 0 would look like a success.
            losses.pop("rotation", None)
        return {"total": self.total.detach(), **losses, **self.health}

    def reconstruction_panels(self, sample: int = 0) -> dict[str, ReconstructedView]:
        """What is drawn of one view of each modality.

        Args:
            sample: index along the batch axis of `views`; 0 is the first view of the first crop.
        """
        return {
            name: ReconstructedView(
                view.target[sample, 0],
                view.corrupted[sample, 0],
                self.reconstructions[name][sample, 0],
                view.mask[sample, 0],
                view.inside[sample, 0],
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

    Args:
        model: the model; in training mode its stochastic depth draws from torch's generator, which is seeded here.
        batch: as :class:`CropDataset` loads it. All but the crops are on the CPU, because reading a value from the GPU
            would stall the step.

            - `ct` and `mr`, or one of them: crops (B, 1, z, y, x).
            - `ct_inside` and `mr_inside`: int64 (B, 3, 2), the part of each crop that is no padding.
            - `registered`: bool (B,), whether CT and MR of each sample are registered.
            - `ct_turnable` and `mr_turnable`: bool (B,), which crops may be turned by quarters.
        configuration: settings of the run.
        step: steps taken so far; in a validation the index of the batch, which only seeds its draws.
        averages: running averages of the density loss, by level; empty or None at the beginning.
        validation: draw from random streams that training does not use; encode every view as a single image, as in
            fine-tuning, and once more in pairs for the measures of pairs; measure density matching at all levels,
            without its warm-up.
        processes: those that train together; all of them must call this, each with its part of the batch.

    Returns:
        The losses of the whole batch, and measures and views of this process's part.
    """
    stream_offset = VALIDATION if validation else 0
    seed = configuration.seed
    # Stochastic depth is the only draw that depends on how the batch is divided: each process has its own seed.
    rank_key = (processes.rank,) if processes.rank else ()
    torch.manual_seed(derived_seed(seed, step, NETWORK + stream_offset, *rank_key))
    crops: dict[str, Tensor] = {name: batch[name.lower()] for name in DOMAINS if name.lower() in batch}
    registered = batch["registered"]
    device = next(iter(crops.values())).device
    sample_indices = range(processes.rank * len(registered), (processes.rank + 1) * len(registered))
    generators = sample_generators(seed, step, VIEWS + stream_offset, sample_indices)
    turnable: dict[str, Tensor] = {name: batch[f"{name.lower()}_turnable"] for name in crops}
    inside: dict[str, Tensor] = {name: batch[f"{name.lower()}_inside"] for name in crops}
    views = two_views(crops, turnable, registered, configuration, generators, processes.other_crops, inside)
    outputs, paired_outputs = _encode(model, views, validation, device.type)

    losses, health = proxy_tasks(views.views, outputs, turnable, registered, configuration, processes)
    health |= _pair_health(paired_outputs, registered, processes)
    levels, images = _levels(outputs, paired_outputs, views)
    needs_samples = validation or any(configuration.loss_weight(name) for name in ("density", "variance", "covariance"))
    matches = {}
    if needs_samples:
        generators = sample_generators(seed, step, TOKENS + stream_offset, sample_indices)
        samples = LevelSamples.draw(levels, images, configuration, generators, sample_indices, processes)
        losses |= samples.vicreg_terms()
        loss_levels = matched_levels(list(levels), configuration) if configuration.loss_weight("density") else []
        measured_levels = [name for name in levels if name != "stage_0"] if validation else loss_levels
        if len(crops) == len(DOMAINS):
            generator = step_generator(seed, step, DENSITY + stream_offset)
            matches = {level: samples.match_densities(level, averages, generator) for level in measured_levels}
        if loss_levels:
            losses["density"] = torch.stack([matches[level].loss for level in loss_levels]).mean()
        health |= density_health(matches)
        if validation:
            health |= samples.ranks()
    total = torch.zeros((), device=device)
    for name, loss in losses.items():
        total = total + _loss_weight(name, step, configuration, validation) * loss
    averages = averages or {} if validation else update_averages(averages, matches)
    reconstructions = {name: prediction.reconstruction for name, prediction in outputs.predictions.items()}
    return Evaluation(losses, total, averages, health, views.views, reconstructions)


def _loss_weight(name: str, step: int, configuration: Configuration, validation: bool) -> float:
    # In validation, `step` is the index of a batch and says nothing about the warm-up.
    if name == "density" and not validation:
        return density_weight(step, configuration)
    return configuration.loss_weight(name)


def _encode(model: nn.Module, views: Views, validation: bool, device: str) -> tuple[Outputs, Outputs]:
    """Outputs that the losses use, and outputs that the measures of pairs use.

    In training both are the same. In validation all views are encoded as single images for the losses, and those with a
    partner a second time, with their partners, for the measures of pairs.
    """
    corrupted = {name: view.corrupted for name, view in views.views.items()}
    cut_out = {name: view.hidden for name, view in views.views.items()}
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        if not validation:
            outputs = model(corrupted, views.paired_count, views.partners, cut_out=cut_out)
            return outputs, outputs
        outputs = model(corrupted, cut_out=cut_out)
        if not views.paired_count:
            return outputs, outputs
        with_partner = {name: images[: views.paired_count] for name, images in corrupted.items()}
        return outputs, model(with_partner, views.paired_count, views.partners, need_weights=True)


def _levels(
    outputs: Outputs, paired_outputs: Outputs, views: Views
) -> tuple[dict[str, Level], dict[str, dict[str, Tensor]]]:
    """Tokens by level, and the views that they were computed from, by level and modality.

    The views are neither cut out nor rendered in a random contrast, which would change what counts as tissue.
    """
    levels = dict(outputs.levels)
    if "paired" in paired_outputs.levels:
        levels["paired"] = paired_outputs.levels["paired"]
    images: dict[str, dict[str, Tensor]] = {}
    for name, level in levels.items():
        images[name] = {}
        for modality, tokens in level.tokens.items():
            shown = views.views[modality].unrendered
            # Views with a partner come first along the batch axis, single images last: see PretrainingModel.forward.
            images[name][modality] = shown[: len(tokens)] if name == "paired" else shown[-len(tokens) :]
    return levels, images


def _pair_health(paired_outputs: Outputs, registered: Tensor, processes: Processes) -> dict[str, Tensor]:
    """Measures of the Domain Invariance Module; those of attention only where the model returned its weights."""
    health: dict[str, Tensor] = {}
    if paired_outputs.change is not None:
        health["dim_change"] = processes.gather(paired_outputs.change.detach()[None]).mean()
    pair = paired_outputs.pair
    if pair is not None and pair.ct_weights:
        health["attention_entropy"] = attention_entropy(pair.ct_weights + pair.mr_weights)
        # All views of every crop are along the batch axis.
        views_per_crop = len(pair.ct) // len(registered)
        difference = attention_difference(pair.ct_weights, pair.mr_weights, registered.repeat(views_per_crop))
        if difference is not None:
            health["attention_difference"] = difference
    return health
