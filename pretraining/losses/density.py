"""Density matching (SwinFUSE, arXiv 2405.12781): kernel densities of CT and MR tokens, and the divergence between them.

The paper prints `- L_JSD`, which literally would increase the difference between the modalities. Here the
Jensen-Shannon divergence is minimised. In the tokens' full dimension the divergence of kernel densities saturates at
ln 2 for any two distributions, so tokens are standardised and projected to a few dimensions by a new random projection
at every step, and the width of the kernel is derived from their distances.

Gradients pass through the standardisation, so the loss depends neither on the scale nor on the offset of the tokens: if
mean and deviation were detached, shrinking all tokens would lower it.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.host_copies import send
from pretraining.losses.coral import coral
from pretraining.losses.mmd import maximum_mean_discrepancy
from pretraining.losses.sliced_wasserstein import sliced_wasserstein
from pretraining.losses.weighted import median_distance, weighted_mean, weighted_variance, weights_of

DensityLoss = Literal["kde_jsd", "mmd", "coral", "sliced_wasserstein"]
# Default width of the kernel relative to the median distance of two tokens. Narrower kernels saturate earlier: at 0.35,
# freely movable tokens in 4 dimensions did not reach the other set within 300 steps; at 0.5 they did in 4 to 48.
BANDWIDTH_SHARE = 0.5
# Of standardised tokens: keeps the kernel from degenerating if all tokens coincide.
MIN_BANDWIDTH = 1e-2
# Of a channel, in the units of the features: keeps the standardisation finite if all tokens coincide.
MIN_DEVIATION = 1e-4


class DensityMatch(NamedTuple):
    """The loss, and measures that distinguish matched densities from collapsed features.

    Attributes:
        loss: what is minimised: the divergence above its floor, or the selected alternative.
        divergence: Jensen-Shannon divergence in nats, from 0 to ln 2, detached.
        floor: the divergence between tokens of one modality from different crops, detached: a smaller divergence
            between CT and MR cannot be told from sampling noise. None without groups of crops.
        median_bandwidth: kernel width from the distances in this batch, detached.
        feature_variance: mean variance of the tokens' channels, detached; 0 if all tokens are alike.
    """

    loss: Tensor
    divergence: Tensor
    floor: Tensor | None
    median_bandwidth: Tensor
    feature_variance: Tensor


def density_matching(
    ct: Tensor,
    mr: Tensor,
    *,
    ct_mask: Tensor | None = None,
    mr_mask: Tensor | None = None,
    ct_groups: Tensor | None = None,
    mr_groups: Tensor | None = None,
    bandwidth: Tensor | None = None,
    bandwidth_share: float = BANDWIDTH_SHARE,
    floor: Tensor | None = None,
    dimensions: int = 8,
    generator: torch.Generator | None = None,
    loss: DensityLoss = "kde_jsd",
) -> DensityMatch:
    """Estimates how different the distributions of two sets of tokens are; differentiable in both sets.

    Args:
        ct: tokens (N, C), at least 2.
        mr: tokens (M, C), at least 2.
        ct_mask, mr_mask: bool (N,) and (M,), the tokens to compare, at least 2 of each; all when None. The others are
            ignored, without reading a value from the device.
        ct_groups, mr_groups: bool (N,) and (M,), dividing the crops that the tokens come from into two groups, between
            which the floor is measured; not measured when None.
        bandwidth: kernel width to use, such as a running average; that of this batch when None.
        bandwidth_share: kernel width of this batch, relative to the median distance of two of its tokens.
        floor: divergence below which there is nothing to learn, such as a running average of measured floors; the loss
            and its gradient are 0 there. 0 when None.
        dimensions: tokens with more channels are projected to this many by a random orthonormal matrix.
        generator: CPU generator of the projection.
        loss: `kde_jsd`, or an alternative for comparison, on the same standardised tokens in all their channels:
            `mmd`, `coral` or `sliced_wasserstein`. The divergence is measured in any case.

    Raises:
        ValueError: for sets of fewer than 2 tokens, or with different numbers of channels.
    """
    if ct.ndim != 2 or mr.ndim != 2 or ct.shape[1] != mr.shape[1] or min(len(ct), len(mr)) < 2:
        raise ValueError(
            f"expected tokens (N, C) and (M, C) with N, M of at least 2, found {tuple(ct.shape)} and {tuple(mr.shape)}"
        )
    with torch.autocast(ct.device.type, enabled=False):
        ct, mr = (tokens if tokens.dtype == torch.float64 else tokens.float() for tokens in (ct, mr))
        ct_weights, mr_weights = weights_of(ct, ct_mask), weights_of(mr, mr_mask)
        pooled, weights = torch.cat([ct, mr]), torch.cat([ct_weights, mr_weights])
        mean, variance = weighted_mean(pooled, weights), weighted_variance(pooled, weights)
        # Clamped before the root, whose gradient at 0 is not finite.
        deviation = variance.clamp_min(MIN_DEVIATION**2).sqrt()
        ct, mr = (ct - mean) / deviation, (mr - mean) / deviation
        alternative = _alternative(loss, (ct, ct_weights), (mr, mr_weights), generator)
        if alternative is not None:
            # The divergence is then only reported, without a gradient.
            ct, mr = ct.detach(), mr.detach()
        if ct.shape[1] > dimensions:
            projection = send(_orthonormal(ct.shape[1], dimensions, generator), ct.device, ct.dtype)
            ct, mr = ct @ projection, mr @ projection
        batch_bandwidth = median_bandwidth(torch.cat([ct, mr]).detach(), weights, bandwidth_share)
        width = batch_bandwidth
        if bandwidth is not None:
            width = bandwidth.to(batch_bandwidth).clamp_min(MIN_BANDWIDTH)
        divergence = jensen_shannon_divergence(ct, mr, width, ct_weights, mr_weights)
        excess = divergence if floor is None else (divergence - floor.to(divergence)).clamp_min(0)
        measured_floor = None
        if ct_groups is not None and mr_groups is not None:
            ct_floor = _divergence_between_groups(ct.detach(), ct_weights, ct_groups, width)
            mr_floor = _divergence_between_groups(mr.detach(), mr_weights, mr_groups, width)
            measured_floor = (ct_floor + mr_floor) / 2
        return DensityMatch(
            excess if alternative is None else alternative,
            divergence.detach(),
            measured_floor,
            batch_bandwidth,
            variance.detach().mean(),
        )


def jensen_shannon_divergence(
    first: Tensor,
    second: Tensor,
    bandwidth: Tensor | float,
    first_weights: Tensor | None = None,
    second_weights: Tensor | None = None,
) -> Tensor:
    """Divergence between the kernel densities of two sets, averaged over the samples of both.

    `p(x) = 1/N sum_n exp(-|x - x_n|^2 / (2 bandwidth^2))`, up to a factor that both densities share and that cancels.
    Each sample is left out of the density of its own set, which would otherwise be too high at every sample.

    With `s = p / (p + q)`, the divergence is the mean over both sets of `ln 2 - H(s)`, where H is the binary entropy.
    This equals `1/2 E_p[log p/m] + 1/2 E_q[log q/m]` for exact densities, but not for leave-one-out estimates: for
    them the latter form has no lower bound (isolated pairs of one sample of each set), and minimising it finds such
    pairs instead of matching the densities. The entropy form is bounded.

    Args:
        first: (N, D).
        second: (M, D).
        bandwidth: width of the Gaussian kernel.
        first_weights, second_weights: (N,) and (M,), 1 for samples to use, 0 for samples to ignore; all 1 when None.

    Returns:
        The divergence in nats, from 0 to ln 2; slightly above 0 for samples of equal distributions.
    """
    first_weights = weights_of(first, None) if first_weights is None else first_weights
    second_weights = weights_of(second, None) if second_weights is None else second_weights
    members = torch.block_diag(first_weights[None], second_weights[None])
    return _divergence(torch.cat([first, second]), members, bandwidth)


def median_bandwidth(samples: Tensor, weights: Tensor | None = None, share: float = BANDWIDTH_SHARE) -> Tensor:
    """`share` times the median distance between two of the samples (N, D), at least `MIN_BANDWIDTH`.

    Args:
        samples: (N, D).
        weights: (N,), 1 for samples to use, 0 for samples to ignore; all 1 when None.
        share: width of the kernel relative to the median distance.
    """
    weights = weights_of(samples, None) if weights is None else weights
    return (share * median_distance(samples, weights)).clamp_min(MIN_BANDWIDTH)


def running_average(running: Tensor | None, batch: Tensor, momentum: float = 0.9) -> Tensor:
    """Running average of the bandwidth or the floor: a batch is measured with the average of those before it."""
    batch = batch.detach()
    return batch if running is None else momentum * running + (1 - momentum) * batch


def _alternative(
    loss: str, ct: tuple[Tensor, Tensor], mr: tuple[Tensor, Tensor], generator: torch.Generator | None
) -> Tensor | None:
    """The alternative loss of two sets, each samples and weights; None if the loss is the divergence."""
    if loss == "kde_jsd":
        return None
    if loss == "mmd":
        return maximum_mean_discrepancy(ct[0], mr[0], first_weights=ct[1], second_weights=mr[1])
    if loss == "coral":
        return coral(ct[0], mr[0], ct[1], mr[1])
    if loss == "sliced_wasserstein":
        return sliced_wasserstein(ct[0], mr[0], generator=generator, first_weights=ct[1], second_weights=mr[1])
    raise ValueError(f"loss {loss!r}; expected one of {get_args(DensityLoss)}")


def _divergence(samples: Tensor, members: Tensor, bandwidth: Tensor | float) -> Tensor:
    """Divergence between two sets of samples (N, D), whose members (2, N) are marked with 1, others with 0.

    A few operations on large tensors: on a GPU, the number of operations decides how long this takes.
    """
    norms = samples.square().sum(1)
    squares = norms[:, None] + norms - 2 * samples @ samples.T
    exponents = -squares.clamp_min(0) / (2 * bandwidth**2)
    # At each sample, the density of each set without the sample itself.
    left_out = (members == 0)[:, None] | torch.eye(len(samples), dtype=torch.bool, device=samples.device)
    counts = members.sum(1, keepdim=True) - members
    log_densities = exponents.masked_fill(left_out, float("-inf")).logsumexp(2) - counts.log()
    log_ratio = log_densities[0] - log_densities[1]
    # The entropy does not change with the sign of the ratio, so that it is the same for both sets.
    entropy = F.softplus(log_ratio) - log_ratio * log_ratio.sigmoid()
    return math.log(2) - 0.5 * (weighted_mean(entropy, members[0]) + weighted_mean(entropy, members[1]))


def _divergence_between_groups(samples: Tensor, weights: Tensor, groups: Tensor, bandwidth: Tensor) -> Tensor:
    """Divergence between the samples (N, D) inside and outside of the bool mask (N,).

    0 if a group has fewer than two samples, because each is left out of the density of its own group.
    """
    members = torch.stack([weights * groups, weights * ~groups])
    return torch.where(members.sum(1).amin() > 1, _divergence(samples, members, bandwidth), 0.0)


def _orthonormal(channels: int, dimensions: int, generator: torch.Generator | None) -> Tensor:
    directions = torch.randn(channels, dimensions, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(directions).Q
