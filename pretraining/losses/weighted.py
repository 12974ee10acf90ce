"""Statistics of sets of samples of which some do not count; shapes do not depend on which.

Selecting by a boolean mask makes a GPU's host wait until the mask is known. Weights of 0 and 1 leave all shapes as they
are, and the results are those of the samples that count.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights_of(samples: Tensor, counted: Tensor | None) -> Tensor:
    """1 for each sample that counts and 0 for the others, (N,), in the samples' type.

    Args:
        samples: (N, D).
        counted: bool (N,); None where all count.
    """
    return samples.new_ones(len(samples)) if counted is None else counted.to(samples.dtype)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the first axis of values (N, ...), weighted by (N,)."""
    return torch.tensordot(weights, values, dims=1) / weights.sum()


def weighted_variance(values: Tensor, weights: Tensor) -> Tensor:
    """Unbiased variance over the first axis of the values (N, D) whose weight is 1, not 0."""
    squares = (values - weighted_mean(values, weights)).square()
    return torch.tensordot(weights, squares, dims=1) / (weights.sum() - 1).clamp_min(1)


def median_distance(samples: Tensor, weights: Tensor) -> Tensor:
    """Median Euclidean distance of the pairs of samples (N, D) of which both have a weight above 0."""
    first, second = torch.triu_indices(len(samples), len(samples), 1, device=samples.device)
    pair = (weights[first] > 0) & (weights[second] > 0)
    return torch.pdist(samples).masked_fill(~pair, float("nan")).nanmedian()
