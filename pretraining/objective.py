"""One step's losses: views of a batch, the model on them, the proxy losses, density matching, and what to watch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple
from pretraining.configuration import Configuration
from pretraining.losses.contrastive import contrastive_loss
from pretraining.losses.density import density_matching, update_bandwidth
from pretraining.losses.inpainting import inpainting_loss
from pretraining.losses.rotation import rotation_accuracy, rotation_loss
from pretraining.model import Predictions, PretrainingModel
from pretraining.monitoring.health import attention_difference, attention_entropy
from pretraining.randomness import derived_seed, step_generator
from pretraining.schedule import density_weight
from pretraining.views import View, ViewSettings, apply_view, draw_intensity, draw_view

# Purposes of the generators of a step; training and validation never share one.
VIEWS, DENSITY, ALONE, NETWORK = 0, 1, 2, 3
VALIDATION = 16


@dataclass(frozen=True)
class Evaluation:
    """Losses of one batch and what they were made of.

    Attributes:
        losses: unweighted, by name; `density` only where a pair went through the module together.
        total: weighted sum, to be minimised.
        bandwidth: running average of the density loss's bandwidth after this batch.
        health: detached scalars to watch.
        ct, mr: the views of each modality, both views of every crop along the batch axis.
        reconstructions: of CT and MR.
    """

    losses: dict[str, Tensor]
    total: Tensor
    bandwidth: Tensor | None
    health: dict[str, Tensor]
    ct: View
    mr: View
    reconstructions: tuple[Tensor, Tensor]

    def values(self) -> dict[str, Tensor]:
        """All scalars: losses, `total` and health."""
        return {"total": self.total.detach(), **{k: v.detach() for k, v in self.losses.items()}, **self.health}

    def panels(self, sample: int = 0) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Target, corrupted, reconstruction and mask (z, y, x) of one sample of each modality."""
        return {
            name: (view.target[sample, 0], view.corrupted[sample, 0], reconstruction[sample, 0], view.mask[sample, 0])
            for name, view, reconstruction in zip(("CT", "MR"), (self.ct, self.mr), self.reconstructions, strict=True)
        }


def evaluate(
    model: PretrainingModel,
    batch: Mapping[str, Any],
    configuration: Configuration,
    step: int,
    bandwidth: Tensor | None,
    validation: bool = False,
) -> Evaluation:
    """Losses of one batch; a function of the weights, the batch, the seed, the step and the running bandwidth.

    Args:
        model: the model; in training mode its stochastic depth draws from torch's generator, seeded here.
        batch: `ct` and `mr`, each (B, 1, z, y, x); `paired` (B,), read in validation only.
        configuration: settings of the run.
        step: steps taken so far, or the number of the batch in a validation.
        bandwidth: running average of the density loss's bandwidth, None in the beginning.
        validation: draw from other random streams than training, and always show the module both images.
    """
    offset = VALIDATION if validation else 0
    seed = configuration.seed
    torch.manual_seed(derived_seed(seed, step, NETWORK + offset))
    ct, mr = two_views(batch["ct"], batch["mr"], configuration, step_generator(seed, step, VIEWS + offset))
    draw = torch.rand((), generator=step_generator(seed, step, ALONE + offset)).item()
    alone = not validation and draw < configuration.single_share
    device = batch["ct"].device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        predicted_ct, predicted_mr, pair = model(ct.corrupted, mr.corrupted, alone, need_weights=validation)

    losses: dict[str, Tensor] = {}
    for name in ("inpainting", "contrastive", "rotation"):
        if configuration.loss_weight(name):
            by_modality = [
                _proxy_loss(name, view, predicted, configuration)
                for view, predicted in ((ct, predicted_ct), (mr, predicted_mr))
            ]
            losses[name] = torch.stack(by_modality).mean()
    total = batch["ct"].new_zeros(())
    for name, loss in losses.items():
        total = total + configuration.loss_weight(name) * loss
    health = _proxy_health(((ct, predicted_ct), (mr, predicted_mr)))
    if pair is not None:
        health["dim_change"] = pair.change.detach()
        if pair.ct_weights:
            health["attention_entropy"] = attention_entropy(pair.ct_weights + pair.mr_weights)
            # Both views of every crop lie along the batch axis.
            difference = attention_difference(pair.ct_weights, pair.mr_weights, batch["paired"].repeat(2))
            if difference is not None:
                health["attention_difference"] = difference
        if configuration.density_weight:
            match = density_matching(
                _tokens(pair.ct_tokens, ct.target, pair.grid),
                _tokens(pair.mr_tokens, mr.target, pair.grid),
                bandwidth=bandwidth,
                dimensions=configuration.density_dimensions,
                samples=configuration.density_samples,
                generator=step_generator(seed, step, DENSITY + offset),
            )
            losses["density"] = match.divergence
            total = total + density_weight(step, configuration) * match.divergence
            if not validation:
                bandwidth = update_bandwidth(bandwidth, match.median_bandwidth)
            health |= {
                "divergence_share": match.divergence.detach() / math.log(2),
                "bandwidth": match.median_bandwidth,
                "effective_rank": match.effective_rank,
                "feature_variance": match.feature_variance,
            }
    return Evaluation(
        losses, total, bandwidth, health, ct, mr, (predicted_ct.reconstruction, predicted_mr.reconstruction)
    )


def two_views(ct: Tensor, mr: Tensor, configuration: Configuration, generator: torch.Generator) -> tuple[View, View]:
    """Two views of each crop, joined along the batch axis (2B, ...).

    CT and MR of a view share rotation and cut-outs, so that registered crops stay registered; intensities differ.
    """
    settings = ViewSettings(corrupted_share=configuration.corrupted_share)
    shape: Triple = (ct.shape[2], ct.shape[3], ct.shape[4])
    views: dict[str, list[View]] = {"ct": [], "mr": []}
    for _ in range(2):
        parameters = draw_view(len(ct), shape, settings, generator)
        for name, crops in (("ct", ct), ("mr", mr)):
            intensity = draw_intensity(len(ct), settings, generator)
            views[name].append(apply_view(crops, parameters, intensity, generator))
    return _join(views["ct"]), _join(views["mr"])


def foreground_tokens(image: Tensor, grid: Triple) -> Tensor:
    """Which cells of a grid show tissue: those whose voxels vary by more than 5 % of what the crop's do.

    Air around a CT and the zeros around a skull-stripped MR are flat; both modalities need no threshold of their own.

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


def _proxy_loss(name: str, view: View, predicted: Predictions, configuration: Configuration) -> Tensor:
    if name == "inpainting":
        return inpainting_loss(predicted.reconstruction, view.target, view.mask)
    if name == "rotation":
        return rotation_loss(predicted.turns, view.turns)
    first, second = predicted.projection.chunk(2)
    return contrastive_loss(first, second, configuration.temperature)


@torch.no_grad()
def _proxy_health(modalities: tuple[tuple[View, Predictions], ...]) -> dict[str, Tensor]:
    accuracies, errors, mean_errors = [], [], []
    for view, predicted in modalities:
        accuracies.append(rotation_accuracy(predicted.turns, view.turns))
        target, mask = view.target.float(), view.mask
        errors.append((predicted.reconstruction.float() - target).abs()[mask].mean())
        # What a reconstruction must beat: each crop's cut-out filled with the mean of what can be seen of it.
        visible = (~mask).float()
        fill = (target * visible).sum((1, 2, 3, 4)) / visible.sum((1, 2, 3, 4)).clamp_min(1)
        mean_errors.append((fill.reshape(-1, 1, 1, 1, 1) - target).abs()[mask].mean())
    return {
        "rotation_accuracy": torch.stack(accuracies).mean(),
        "masked_error": torch.stack(errors).mean(),
        "masked_error_of_mean": torch.stack(mean_errors).mean(),
    }


def _tokens(tokens: Tensor, image: Tensor, grid: Triple) -> Tensor:
    """Tissue tokens of all samples (N, C); all tokens where hardly any tissue is seen."""
    foreground = foreground_tokens(image, grid)
    if foreground.sum() < 16:
        return tokens.flatten(0, 1)
    return tokens[foreground]


def _join(views: list[View]) -> View:
    return View(*(torch.cat(parts) for parts in zip(*views, strict=True)))
