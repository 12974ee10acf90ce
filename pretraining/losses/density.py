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
import torch.nn.functional as F
from torch import Tensor

from pretraining.losses.coral import coral
from pretraining.losses.mmd import maximum_mean_discrepancy
from pretraining.losses.sliced_wasserstein import sliced_wasserstein
from pretraining.losses.weighted import median_distance, weighted_mean, weighted_variance, weights_of

# Of the median distance of two tokens. Narrower kernels saturate earlier: at 0.35, tokens that move one by one in 4
# dimensions did not find the other cloud within 300 steps; at 0.5 the clouds met in 4 to 48 dimensions.
BANDWIDTH_SHARE = 0.5
DENSITY_LOSSES = ("kde_jsd", "mmd", "coral", "sliced_wasserstein")
SMALLEST_BANDWIDTH = 1e-2
SMALLEST_DEVIATION = 1e-4


class DensityMatch(NamedTuple):
    """The loss and what tells a match from a collapse.

    Attributes:
        loss: what is minimised: the divergence, or the alternative that was asked for.
        divergence: Jensen-Shannon divergence in nats, from 0 to ln 2; detached where another loss is minimised.
        median_bandwidth: kernel width that this batch's distances ask for, detached.
        effective_rank: exponential of the entropy of the tokens' normalised spectrum (Roy and Vetterli, 2007); 1 when
            all vary along one line.
        feature_variance: mean variance of the tokens' channels; 0 when all are alike.
    """

    loss: Tensor
    divergence: Tensor
    median_bandwidth: Tensor
    effective_rank: Tensor
    feature_variance: Tensor


def density_matching(
    ct: Tensor,
    mr: Tensor,
    *,
    ct_counted: Tensor | None = None,
    mr_counted: Tensor | None = None,
    bandwidth: Tensor | None = None,
    dimensions: int = 8,
    samples: int = 512,
    generator: torch.Generator | None = None,
    loss: str = "kde_jsd",
) -> DensityMatch:
    """Estimates how far apart two sets of tokens are distributed; differentiable in both.

    Args:
        ct: tokens (N, C), at least 2.
        mr: tokens (M, C), at least 2.
        ct_counted, mr_counted: bool (N,) and (M,), the tokens to compare, at least 2 of each; all when None. The others
            change nothing, and no value is read from the device to leave them out.
        bandwidth: kernel width to use, such as a running average; this batch's own when None.
        dimensions: tokens with more channels are projected to this many by a random orthonormal map.
        samples: tokens taken of each set at most.
        generator: CPU generator for samples and projection.
        loss: `kde_jsd`, or an alternative to compare with, on the same standardised samples in all their channels:
            `mmd`, `coral` or `sliced_wasserstein`. The divergence is measured in any case.

    Raises:
        ValueError: for sets of fewer than 2 tokens or different channels.
    """
    if ct.ndim != 2 or mr.ndim != 2 or ct.shape[1] != mr.shape[1] or min(len(ct), len(mr)) < 2:
        raise ValueError(
            f"expected tokens (N, C) and (M, C) with N, M of at least 2, found {tuple(ct.shape)} and {tuple(mr.shape)}"
        )
    with torch.autocast(ct.device.type, enabled=False):
        ct, ct_weights = _subsample(ct, ct_counted, samples, generator)
        mr, mr_weights = _subsample(mr, mr_counted, samples, generator)
        pooled, weights = torch.cat([ct, mr]).detach(), torch.cat([ct_weights, mr_weights])
        mean, variance = weighted_mean(pooled, weights), weighted_variance(pooled, weights)
        deviation = variance.sqrt().clamp_min(SMALLEST_DEVIATION)
        ct, mr = (ct - mean) / deviation, (mr - mean) / deviation
        alternative = _alternative(loss, (ct, ct_weights), (mr, mr_weights), generator)
        if alternative is not None:
            ct, mr = ct.detach(), mr.detach()
        if ct.shape[1] > dimensions:
            projection = _orthonormal(ct.shape[1], dimensions, generator).to(ct)
            ct, mr = ct @ projection, mr @ projection
        median = median_bandwidth(torch.cat([ct, mr]).detach(), weights)
        width = median if bandwidth is None else bandwidth.to(median).clamp_min(SMALLEST_BANDWIDTH)
        divergence = jensen_shannon_divergence(ct, mr, width, ct_weights, mr_weights)
        return DensityMatch(
            divergence if alternative is None else alternative,
            divergence,
            median,
            effective_rank(pooled, weights),
            variance.mean(),
        )


def jensen_shannon_divergence(
    first: Tensor,
    second: Tensor,
    bandwidth: Tensor | float,
    first_weights: Tensor | None = None,
    second_weights: Tensor | None = None,
) -> Tensor:
    """Divergence between the kernel densities of two sets, averaged over the sets' own samples.

    `p(x) = 1/N sum_n exp(-|x - x_n|^2 / (2 bandwidth^2))` up to a factor that both densities share and that cancels;
    a sample is left out of its own set's density, or that density would be too high at every sample.

    Args:
        first: (N, D).
        second: (M, D).
        bandwidth: width of the Gaussian kernel.
        first_weights, second_weights: (N,) and (M,), 0 for samples that do not count, 1 for the others.

    With `s = p / (p + q)`, the divergence is the mean over both sets of `ln 2 - H(s)`, H being the entropy of a coin.
    It equals `1/2 E_p[log p/m] + 1/2 E_q[log q/m]` for exact densities, but not for estimates: left-out samples make
    that form as negative as one likes (each sample alone beside one of the other set), which a minimiser finds
    instead of a match. The entropy cannot leave its range.

    Returns:
        The divergence in nats, from 0 to ln 2; slightly above 0 for samples of equal distributions.
    """
    sets = (
        (first, weights_of(first, None) if first_weights is None else first_weights),
        (second, weights_of(second, None) if second_weights is None else second_weights),
    )
    return 0.5 * (_information_from(*sets, bandwidth) + _information_from(*reversed(sets), bandwidth))


def median_bandwidth(samples: Tensor, weights: Tensor | None = None) -> Tensor:
    """A share of the median distance between two samples (N, D), floored; those of weight 0 do not count."""
    weights = weights_of(samples, None) if weights is None else weights
    return (BANDWIDTH_SHARE * median_distance(samples, weights)).clamp_min(SMALLEST_BANDWIDTH)


def update_bandwidth(running: Tensor | None, batch: Tensor, momentum: float = 0.9) -> Tensor:
    """Running average of the bandwidth, so that the measure does not change with each batch it measures."""
    batch = batch.detach()
    return batch if running is None else momentum * running + (1 - momentum) * batch


def effective_rank(tokens: Tensor, weights: Tensor | None = None) -> Tensor:
    """Effective rank of centred tokens (N, C), between 1 and C; 1 for tokens that are all alike.

    Args:
        tokens: (N, C).
        weights: (N,), 0 for tokens that do not count, 1 for the others.
    """
    weights = weights_of(tokens, None) if weights is None else weights
    # Rows of zeros add nothing to the spectrum.
    spectrum = torch.linalg.svdvals((tokens - weighted_mean(tokens, weights)) * weights[:, None])
    shares = spectrum / spectrum.sum().clamp_min(1e-12)
    return (-(shares * shares.clamp_min(1e-12).log()).sum()).exp()


def _alternative(
    loss: str, ct: tuple[Tensor, Tensor], mr: tuple[Tensor, Tensor], generator: torch.Generator | None
) -> Tensor | None:
    """The loss of two sets, each samples and weights, where it is not the divergence."""
    if loss == "kde_jsd":
        return None
    if loss == "mmd":
        return maximum_mean_discrepancy(ct[0], mr[0], first_weights=ct[1], second_weights=mr[1])
    if loss == "coral":
        return coral(ct[0], mr[0], ct[1], mr[1])
    if loss == "sliced_wasserstein":
        return sliced_wasserstein(ct[0], mr[0], generator=generator, first_weights=ct[1], second_weights=mr[1])
    raise ValueError(f"loss {loss!r}; expected one of {DENSITY_LOSSES}")


def _information_from(own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], bandwidth: Tensor | float) -> Tensor:
    points, weights = own
    log_ratio = _log_density(points, *own, bandwidth, leave_one_out=True) - _log_density(points, *other, bandwidth)
    entropy = F.softplus(log_ratio) - log_ratio * log_ratio.sigmoid()
    return math.log(2) - weighted_mean(entropy, weights)


def _log_density(
    points: Tensor, centres: Tensor, weights: Tensor, bandwidth: Tensor | float, leave_one_out: bool = False
) -> Tensor:
    squares = points.square().sum(1)[:, None] + centres.square().sum(1)[None] - 2 * points @ centres.T
    exponents = -squares.clamp_min(0) / (2 * bandwidth**2)
    left_out = (weights == 0).expand(len(points), -1)
    count = weights.sum()
    if leave_one_out:
        left_out = left_out | torch.eye(len(centres), dtype=torch.bool, device=points.device)
        count = count - 1
    return exponents.masked_fill(left_out, float("-inf")).logsumexp(1) - count.log()


def _subsample(
    tokens: Tensor, counted: Tensor | None, samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """So many of the tokens that count, and their weights; where there are fewer, others with a weight of 0."""
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    weights = weights_of(tokens, counted)
    if len(tokens) <= samples:
        return tokens, weights
    order = torch.rand(len(tokens), generator=generator).to(tokens.device)
    if counted is not None:
        order = order.masked_fill(~counted, 1.0)
    chosen = order.topk(samples, largest=False).indices
    return tokens[chosen], weights[chosen]


def _orthonormal(channels: int, dimensions: int, generator: torch.Generator | None) -> Tensor:
    directions = torch.randn(channels, dimensions, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(directions).Q
