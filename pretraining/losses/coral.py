"""Deep CORAL (Sun and Saenko, arXiv 1607.01719): matches covariances; insensitive to a difference of the means."""

from __future__ import annotations

import torch
from torch import Tensor

from pretraining.losses.weighted import weighted_mean, weights_of


def coral(
    first: Tensor, second: Tensor, first_weights: Tensor | None = None, second_weights: Tensor | None = None
) -> Tensor:
    """Squared Frobenius distance between the covariance matrices of two sets, divided by `4 D^2` (equation 1).

    Args:
        first: (N, D), N of at least 2.
        second: (M, D), M of at least 2.
        first_weights, second_weights: (N,) and (M,), 1 for samples to use, 0 for samples to ignore; all 1 when None.

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
