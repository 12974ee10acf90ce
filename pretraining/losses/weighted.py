"""Statistics of a part of a set of samples, selected by weights of 0 and 1 instead of indexing.

Indexing with a boolean mask makes the host wait for a GPU, since the shape of the result depends on the mask. With
weights no shape depends on values, and the results are those of the samples with weight 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights_of(samples: Tensor, mask: Tensor | None) -> Tensor:
    """Weights (N,) in the type of the samples: 1 inside the mask, 0 outside.

    Args:
        samples: (N, D).
        mask: bool (N,); None for all samples.
    """
    return samples.new_ones(len(samples)) if mask is None else mask.to(samples.dtype)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the first axis of values (N, ...), weighted by (N,)."""
    return torch.tensordot(weights, values, dims=1) / weights.sum()


def weighted_variance(values: Tensor, weights: Tensor) -> Tensor:
    """Unbiased variance over the first axis of values (N, D) with weight 1; weights (N,) are 0 or 1."""
    squares = (values - weighted_mean(values, weights)).square()
    return torch.tensordot(weights, squares, dims=1) / (weights.sum() - 1).clamp_min(1)


def median_distance(samples: Tensor, weights: Tensor) -> Tensor:
    """Median Euclidean distance between two samples (N, D) with weights above 0."""
    first, second = torch.triu_indices(len(samples), len(samples), 1, device=samples.device)
    pair = (weights[first] > 0) & (weights[second] > 0)
    return torch.pdist(samples).masked_fill(~pair, float("nan")).nanmedian()
