"""How the density estimate depends on its settings: bandwidth, dimensions and number of tokens, without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretraining.analysis.figures import colour_of, marker_of, new_figure, save
from pretraining.analysis.tokens import LayerTokens
from pretraining.losses.density import BANDWIDTH_SHARE, density_matching
from pretraining.randomness import derived_seed

# Random projections, each with tokens of its own, that a value is averaged over.
REPETITIONS = 4


class Estimate(NamedTuple):
    """The estimate with one combination of settings.

    Attributes:
        bandwidth: width of the kernels relative to the median distance of two tokens.
        dimensions: of the projection; at most the channels.
        tokens: of each domain.
        divergence: JSD / ln 2 between the domains, mean over the repetitions.
        floor: the same between crops of one domain.
        deviation: standard deviation of the divergence over the repetitions.
    """

    bandwidth: float
    dimensions: int
    tokens: int
    divergence: float
    floor: float
    deviation: float


class Sweep(NamedTuple):
    """Estimates with varied settings.

    Attributes:
        by_bandwidth: bandwidths and dimensions varied, the middle number of tokens.
        by_tokens: numbers of tokens and dimensions varied, the bandwidth of the loss.
    """

    by_bandwidth: list[Estimate]
    by_tokens: list[Estimate]


def estimate(
    first: LayerTokens, second: LayerTokens, bandwidth: float, dimensions: int, tokens: int, seed: int
) -> Estimate:
    """Estimates the divergence of two sets of tokens with given settings.

    Args:
        first, second: of the domains.
        bandwidth: relative to the median distance of two tokens; the loss uses 0.5 by default.
        dimensions: of the random projection.
        tokens: of each domain, drawn among those that show tissue; all if there are fewer.
        seed: of the repetitions, which are the same for all settings.
    """
    divergences, floors, used = [], [], tokens
    for repetition in range(REPETITIONS):
        ct, mr = (_draw(side, tokens, derived_seed(seed, repetition, n)) for n, side in enumerate((first, second)))
        used = min(used, len(ct[0]), len(mr[0]))
        result = density_matching(
            ct[0], mr[0], ct_groups=ct[1], mr_groups=mr[1], bandwidth_share=bandwidth, dimensions=dimensions,
            generator=torch.Generator().manual_seed(derived_seed(seed, repetition)),
        )  # fmt: skip
        divergences.append(float(result.divergence) / math.log(2))
        assert result.floor is not None
        floors.append(float(result.floor) / math.log(2))
    return Estimate(
        bandwidth, min(dimensions, first.tokens.shape[2]), used, fmean(divergences), fmean(floors),
        float(np.std(divergences)),
    )  # fmt: skip


def sweep(
    first: LayerTokens,
    second: LayerTokens,
    bandwidths: Sequence[float],
    dimensions: Sequence[int],
    tokens: Sequence[int],
    seed: int,
) -> Sweep:
    """Estimates with every bandwidth and every number of tokens, each with all dimensions.

    Args:
        first, second: of the domains.
        bandwidths, dimensions, tokens: see :func:`estimate`; dimensions above the number of channels are dropped, but
            for the channels themselves.
        seed: of the repetitions.
    """
    channels = first.tokens.shape[2]
    sizes = sorted({min(size, channels) for size in dimensions})
    middle = sorted(tokens)[len(tokens) // 2]
    return Sweep(
        [estimate(first, second, width, size, middle, seed) for width in bandwidths for size in sizes],
        [estimate(first, second, BANDWIDTH_SHARE, size, count, seed) for count in tokens for size in sizes],
    )


def draw_sweeps(path: Path, sweeps: Mapping[str, Sweep], title: str) -> Path:
    """Draws a row for each encoder: divergence and floor over bandwidths, and over numbers of tokens.

    Args:
        path: the PNG to write.
        sweeps: by encoder.
        title: of the picture.
    """
    figure, axes = new_figure(len(sweeps), 2, 5.0, 3.0)
    for row, (name, (by_bandwidth, by_tokens)) in zip(axes, sweeps.items(), strict=True):
        for number, size in enumerate(sorted({e.dimensions for e in by_bandwidth})):
            style = {"color": colour_of(number), "marker": marker_of(number), "markersize": 5}
            for axis, estimates, setting in ((row[0], by_bandwidth, "bandwidth"), (row[1], by_tokens, "tokens")):
                part = [e for e in estimates if e.dimensions == size]
                places = [getattr(e, setting) for e in part]
                axis.errorbar(
                    places, [e.divergence for e in part], [e.deviation for e in part], label=f"{size} dimensions",
                    **style,
                )  # fmt: skip
                axis.plot(places, [e.floor for e in part], linestyle=":", **style)
        row[0].set_xlabel(f"bandwidth / median distance ({by_bandwidth[0].tokens} tokens)", fontsize=9)
        row[1].set_xlabel(f"tokens of each domain (bandwidth {BANDWIDTH_SHARE})", fontsize=9)
        row[0].set_ylabel(f"{name}\nJSD / ln 2", fontsize=9)
        row[0].axvline(BANDWIDTH_SHARE, color="black", linewidth=0.6)
        for axis in row:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_ylim(0, 1)
            axis.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=8)
    figure.suptitle(
        f"{title}\nsolid: between the domains, with the standard deviation over projections; dotted: floor, between "
        "crops of one domain; vertical line: the loss", fontsize=9,
    )  # fmt: skip
    return save(figure, path)


def _draw(side: LayerTokens, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens (n, C) that show tissue, and the group of crops that each is from (n,)."""
    chosen = side.mask.nonzero()[:, 0]
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:count]]
    return side.flat[chosen], side.group[chosen]
