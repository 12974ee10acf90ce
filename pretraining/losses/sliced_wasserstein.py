"""Sliced Wasserstein distance (Rabin et al., 2011; Bonneel et al., doi 10.1007/s10851-014-0506-3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.host_copies import send
from pretraining.losses.weighted import weights_of


def sliced_wasserstein(
    first: Tensor,
    second: Tensor,
    directions: int = 64,
    generator: torch.Generator | None = None,
    first_weights: Tensor | None = None,
    second_weights: Tensor | None = None,
) -> Tensor:
    """Mean over random directions of the 1-Wasserstein distance between the projections of two sets.

    Args:
        first: (N, D).
        second: (M, D); N and M may differ.
        directions: number of directions.
        generator: CPU generator for the directions.
        first_weights, second_weights: (N,) and (M,), 1 for samples to use, 0 for samples to ignore; all 1 when None.

    Returns:
        A scalar in the unit of the samples, 0 for equal sets.
    """
    axes = torch.randn(first.shape[1], directions, generator=generator, dtype=torch.float64)
    axes = send(F.normalize(axes, dim=0), first.device, first.dtype)
    return wasserstein_distance(first @ axes, second @ axes, first_weights, second_weights).mean()


def wasserstein_distance(
    first: Tensor, second: Tensor, first_weights: Tensor | None = None, second_weights: Tensor | None = None
) -> Tensor:
    """1-Wasserstein distances (K,) between the columns of (N, K) and (M, K): areas between cumulative distributions."""
    first_weights = weights_of(first, None) if first_weights is None else first_weights
    second_weights = weights_of(second, None) if second_weights is None else second_weights
    used = torch.cat([first_weights, second_weights]) > 0
    values = torch.cat([first, second])
    # Rounding leaves the sum of all shares slightly off zero, and a wide gap to an ignored sample would multiply that.
    values, order = torch.where(used[:, None], values, values[used.int().argmax(0, keepdim=True)]).sort(0)
    steps = torch.cat([first_weights / first_weights.sum(), -second_weights / second_weights.sum()])
    cdf_difference = steps[order].cumsum(0)[:-1].abs()
    return (cdf_difference * values.diff(dim=0)).sum(0)
