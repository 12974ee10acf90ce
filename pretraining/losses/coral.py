"""Deep CORAL (Sun and Saenko, arXiv 1607.01719): equal covariances; blind to a difference of the means."""

from __future__ import annotations

import torch
from torch import Tensor

from pretraining.losses.weighted import weighted_mean, weights_of


def coral(
    first: Tensor, second: Tensor, first_weights: Tensor | None = None, second_weights: Tensor | None = None
) -> Tensor:
    """Squared distance of two sets' covariance matrices over `4 D^2` (equation 1).

    Args:
        first: (N, D), N of at least 2.
        second: (M, D), M of at least 2.
        first_weights, second_weights: (N,) and (M,), 0 for samples that do not count, 1 for the others.

    Returns:
        A scalar, 0 for equal covariances.
    """
    dimensions = first.shape[1]
    difference = _covariance(first, first_weights) - _covariance(second, second_weights)
    return difference.square().sum() / (4 * dimensions**2)


def _covariance(samples: Tensor, weights: Tensor | None) -> Tensor:
    weights = weights_of(samples, None) if weights is None else weights
    centred = samples - weighted_mean(samples, weights)
    return torch.einsum("n,ni,nj->ij", weights, centred, centred) / (weights.sum() - 1)
