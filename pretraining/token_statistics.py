"""Losses and measures of the distribution of tokens at every level of the encoder.

Density matching brings the tokens of CT and MR together; the variance and covariance terms keep them from collapsing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretraining.configuration import Configuration
from pretraining.losses.density import DensityMatch, density_matching, running_average
from pretraining.losses.vicreg import covariance_loss, variance_loss
from pretraining.model import Level
from pretraining.monitoring.feature_rank import effective_rank
from pretraining.processes import Processes
from pretraining.token_samples import TokenSamples, foreground_tokens, sample_tokens

# Running averages of the density loss's bandwidth and floor, shape (2,), by level.
DensityAverages = dict[str, Tensor]


@dataclass(frozen=True)
class LevelSamples:
    """Samples of the tokens of every level, of all processes.

    Attributes:
        samples: token samples, by level and then by modality.
        configuration: settings of the run.
    """

    samples: dict[str, dict[str, TokenSamples]]
    configuration: Configuration

    @classmethod
    def draw(
        cls,
        levels: Mapping[str, Level],
        images: Mapping[str, Mapping[str, Tensor]],
        configuration: Configuration,
        generators: Sequence[torch.Generator],
        sample_indices: range,
        processes: Processes,
    ) -> LevelSamples:
        """Draws at most `density_samples` tokens of each modality and level.

        Args:
            levels: tokens of each level, as the model returns them, by name.
            images: by level and then by modality, the images that the tokens were computed from, without cut-outs
                and random contrasts (crops, 1, z, y, x).
            configuration: settings of the run.
            generators: one on the CPU for each sample of this process.
            sample_indices: indices of this process's samples in the batch of all processes. A level that holds both
                views has twice as many crops.
            processes: the processes that train together.
        """
        samples: dict[str, dict[str, TokenSamples]] = {}
        for name, level in levels.items():
            samples[name] = {}
            for modality, tokens in level.tokens.items():
                views = len(tokens) // len(sample_indices)
                count = max(1, configuration.density_samples // (len(tokens) * processes.world_size))
                foreground = foreground_tokens(images[name][modality], level.grid)
                # Even and odd samples, two sets of different patients: the divergence between them is the floor.
                group = torch.tensor([index % 2 == 0 for index in sample_indices] * views)
                crop_generators = list(generators) * views
                samples[name][modality] = sample_tokens(tokens, foreground, count, crop_generators, group, processes)
        return cls(samples, configuration)

    def match_densities(self, level: str, averages: DensityAverages | None, generator: torch.Generator) -> DensityMatch:
        """Density matching between CT and MR at one level."""
        ct, mr = (self.samples[level][name] for name in ("CT", "MR"))
        average = None if averages is None else averages.get(level)
        return density_matching(
            ct.tokens,
            mr.tokens,
            ct_mask=ct.mask,
            mr_mask=mr.mask,
            ct_groups=ct.group,
            mr_groups=mr.group,
            bandwidth=None if average is None else average[0],
            bandwidth_share=self.configuration.density_bandwidth,
            floor=None if average is None else average[1],
            dimensions=self.configuration.density_dimensions,
            generator=generator,
            loss=self.configuration.density_loss,
        )

    def vicreg_terms(self) -> dict[str, Tensor]:
        """VICReg's variance and covariance terms, each a mean over stages and modalities."""
        stage_samples = [samples for level in self.stages() for samples in self.samples[level].values()]
        losses = {}
        for name, loss in (("variance", variance_loss), ("covariance", covariance_loss)):
            if self.configuration.loss_weight(name):
                losses[name] = torch.stack([loss(samples.tokens, samples.mask) for samples in stage_samples]).mean()
        return losses

    def ranks(self) -> dict[str, Tensor]:
        """Effective rank of every level relative to the largest possible: near 0 for collapsed features, at most 1.

        N tokens, which are centred, span at most N - 1 directions, even where there are more channels. Ranks and limits
        are averaged over the modalities first.

        Slow, because it computes a singular value decomposition for each level: for validation only.
        """
        ranks = {}
        for name, level in self.samples.items():
            by_modality = [effective_rank(s.tokens.detach(), s.mask.float()) for s in level.values()]
            limits = [(s.mask.sum() - 1).clamp(1, s.tokens.shape[1]).float() for s in level.values()]
            ranks[f"rank_{name}"] = torch.stack(by_modality).mean() / torch.stack(limits).mean()
        return ranks

    def stages(self) -> list[str]:
        """The levels that are stages of the encoder."""
        return [name for name in self.samples if name.startswith("stage_")]


def matched_levels(names: Sequence[str], configuration: Configuration) -> list[str]:
    """The levels that the density loss matches, of those in `names`.

    The setting `stages` means all stages but the finest, whose features are hardly more than voxels.
    """
    selected = set(configuration.density_levels)
    return [
        name
        for name in names
        if (name in selected or (name.startswith("stage_") and "stages" in selected)) and name != "stage_0"
    ]


def update_averages(averages: DensityAverages | None, matches: Mapping[str, DensityMatch]) -> DensityAverages:
    """Running averages after a batch; levels that were not measured keep theirs."""
    updated = dict(averages or {})
    for level, match in matches.items():
        floor = torch.zeros_like(match.median_bandwidth) if match.floor is None else match.floor
        bandwidth_and_floor = torch.stack([match.median_bandwidth, floor.to(match.median_bandwidth)])
        updated[level] = running_average(updated.get(level), bandwidth_and_floor)
    return updated


def density_health(matches: Mapping[str, DensityMatch]) -> dict[str, Tensor]:
    """Divergences and their floors relative to ln 2, by level, and one bandwidth and feature variance.

    These two are those of single images, the mode that fine-tuning uses, or of pairs if there are none.
    """
    health = {}
    for level, match in matches.items():
        health[f"divergence_{level}"] = match.divergence / math.log(2)
        if match.floor is not None:
            health[f"floor_{level}"] = match.floor / math.log(2)
    deployed_mode = matches.get("single_image") or matches.get("paired")
    if deployed_mode is not None:
        health |= {"bandwidth": deployed_mode.median_bandwidth, "feature_variance": deployed_mode.feature_variance}
    return health
