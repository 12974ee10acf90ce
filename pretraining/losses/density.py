"""Density matching (SwinFUSE, arXiv 2405.12781): kernel densities of CT and MR tokens, and the divergence between them.

The paper prints `- L_JSD`; taken literally that drives the modalities apart. Here the Jensen-Shannon divergence is
minimised. Kernel densities in the tokens' full dimension saturate at ln 2 whatever their distributions, so tokens are
standardised and projected to few dimensions, another random few at every step, and the kernel's width follows
their distances.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Of the median distance of two tokens: wide enough for a few hundred samples, narrow enough to tell two clouds apart.
BANDWIDTH_SHARE = 0.35
SMALLEST_BANDWIDTH = 1e-2
SMALLEST_DEVIATION = 1e-4


class DensityMatch(NamedTuple):
    """The divergence and what tells a match from a collapse.

    Attributes:
        divergence: Jensen-Shannon divergence in nats, from 0 to ln 2 up to estimation noise.
        median_bandwidth: kernel width that this batch's distances ask for, detached.
        effective_rank: exponential of the entropy of the tokens' normalised spectrum (Roy and Vetterli, 2007); 1 when
            all vary along one line.
        feature_variance: mean variance of the tokens' channels; 0 when all are alike.
    """

    divergence: Tensor
    median_bandwidth: Tensor
    effective_rank: Tensor
    feature_variance: Tensor


def density_matching(
    ct: Tensor,
    mr: Tensor,
    *,
    bandwidth: Tensor | None = None,
    dimensions: int = 8,
    samples: int = 512,
    generator: torch.Generator | None = None,
) -> DensityMatch:
    """Estimates how far apart two sets of tokens are distributed; differentiable in both.

    Args:
        ct: tokens (N, C), at least 2.
        mr: tokens (M, C), at least 2.
        bandwidth: kernel width to use, such as a running average; this batch's own when None.
        dimensions: tokens with more channels are projected to this many by a random orthonormal map.
        samples: tokens taken of each set at most.
        generator: CPU generator for samples and projection.

    Raises:
        ValueError: for sets of fewer than 2 tokens or different channels.
    """
    if ct.ndim != 2 or mr.ndim != 2 or ct.shape[1] != mr.shape[1] or min(len(ct), len(mr)) < 2:
        raise ValueError(
            f"expected tokens (N, C) and (M, C) with N, M of at least 2, found {tuple(ct.shape)} and {tuple(mr.shape)}"
        )
    with torch.autocast(ct.device.type, enabled=False):
        ct, mr = (_subsample(tokens, samples, generator) for tokens in (ct, mr))
        pooled = torch.cat([ct, mr]).detach()
        mean, deviation = pooled.mean(0), pooled.std(0).clamp_min(SMALLEST_DEVIATION)
        ct, mr = (ct - mean) / deviation, (mr - mean) / deviation
        if ct.shape[1] > dimensions:
            projection = _orthonormal(ct.shape[1], dimensions, generator).to(ct)
            ct, mr = ct @ projection, mr @ projection
        median = median_bandwidth(torch.cat([ct, mr]).detach())
        width = median if bandwidth is None else bandwidth.to(median).clamp_min(SMALLEST_BANDWIDTH)
        return DensityMatch(
            jensen_shannon_divergence(ct, mr, width), median, effective_rank(pooled), pooled.var(0).mean()
        )


def jensen_shannon_divergence(first: Tensor, second: Tensor, bandwidth: Tensor | float) -> Tensor:
    """Divergence between the kernel densities of two sets, averaged over the sets' own samples.

    `p(x) = 1/N sum_n exp(-|x - x_n|^2 / (2 bandwidth^2))` up to a factor that both densities share and that cancels;
    a sample is left out of its own set's density, or that density would be too high at every sample.

    Args:
        first: (N, D).
        second: (M, D).
        bandwidth: width of the Gaussian kernel.

    Returns:
        The divergence in nats; around 0, and then possibly below, for equal distributions, at most ln 2.
    """
    own_first = _log_density(first, first, bandwidth, leave_one_out=True)
    other_first = _log_density(first, second, bandwidth)
    own_second = _log_density(second, second, bandwidth, leave_one_out=True)
    other_second = _log_density(second, first, bandwidth)
    mixture_first = torch.logaddexp(own_first, other_first) - math.log(2)
    mixture_second = torch.logaddexp(own_second, other_second) - math.log(2)
    return 0.5 * ((own_first - mixture_first).mean() + (own_second - mixture_second).mean())


def median_bandwidth(samples: Tensor) -> Tensor:
    """A share of the median distance between two samples (N, D), floored."""
    return (BANDWIDTH_SHARE * torch.pdist(samples).median()).clamp_min(SMALLEST_BANDWIDTH)


def update_bandwidth(running: Tensor | None, batch: Tensor, momentum: float = 0.9) -> Tensor:
    """Running average of the bandwidth, so that the measure does not change with each batch it measures."""
    batch = batch.detach()
    return batch if running is None else momentum * running + (1 - momentum) * batch


def effective_rank(tokens: Tensor) -> Tensor:
    """Effective rank of centred tokens (N, C), between 1 and C; 1 for tokens that are all alike."""
    spectrum = torch.linalg.svdvals(tokens - tokens.mean(0))
    shares = spectrum / spectrum.sum().clamp_min(1e-12)
    return (-(shares * shares.clamp_min(1e-12).log()).sum()).exp()


def _log_density(points: Tensor, centres: Tensor, bandwidth: Tensor | float, leave_one_out: bool = False) -> Tensor:
    squares = points.square().sum(1)[:, None] + centres.square().sum(1)[None] - 2 * points @ centres.T
    exponents = -squares.clamp_min(0) / (2 * bandwidth**2)
    count = len(centres)
    if leave_one_out:
        itself = torch.eye(count, dtype=torch.bool, device=points.device)
        exponents = exponents.masked_fill(itself, float("-inf"))
        count -= 1
    return exponents.logsumexp(1) - math.log(count)


def _subsample(tokens: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    if len(tokens) > samples:
        tokens = tokens[torch.randperm(len(tokens), generator=generator)[:samples].to(tokens.device)]
    return tokens if tokens.dtype == torch.float64 else tokens.float()


def _orthonormal(channels: int, dimensions: int, generator: torch.Generator | None) -> Tensor:
    directions = torch.randn(channels, dimensions, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(directions).Q
