"""Sliced Wasserstein distance (Rabin et al., 2011; Bonneel et al., doi 10.1007/s10851-014-0506-3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sliced_wasserstein(
    first: Tensor, second: Tensor, directions: int = 64, generator: torch.Generator | None = None
) -> Tensor:
    """Mean over random directions of the 1-Wasserstein distance of the sets' projections.

    Args:
        first: (N, D).
        second: (M, D); N and M may differ.
        directions: how many.
        generator: CPU generator of the directions.

    Returns:
        A scalar in the samples' unit, 0 for equal sets.
    """
    axes = torch.randn(first.shape[1], directions, generator=generator, dtype=torch.float64)
    axes = F.normalize(axes, dim=0).to(first)
    return wasserstein_distance(first @ axes, second @ axes).mean()


def wasserstein_distance(first: Tensor, second: Tensor) -> Tensor:
    """1-Wasserstein distances (K,) of the columns of (N, K) and (M, K): areas between their distribution functions."""
    values = torch.cat([first, second]).sort(0).values
    lower = values[:-1].T.detach().contiguous()
    shares = [
        torch.searchsorted(samples.detach().sort(0).values.T.contiguous(), lower, right=True) / len(samples)
        for samples in (first, second)
    ]
    return ((shares[0] - shares[1]).abs() * values.diff(dim=0).T).sum(1)
