"""Deep CORAL (Sun and Saenko, arXiv 1607.01719): equal covariances; blind to a difference of the means."""

from __future__ import annotations

from torch import Tensor


def coral(first: Tensor, second: Tensor) -> Tensor:
    """Squared distance of two sets' covariance matrices over `4 D^2` (equation 1).

    Args:
        first: (N, D), N of at least 2.
        second: (M, D), M of at least 2.

    Returns:
        A scalar, 0 for equal covariances.
    """
    dimensions = first.shape[1]
    return (_covariance(first) - _covariance(second)).square().sum() / (4 * dimensions**2)


def _covariance(samples: Tensor) -> Tensor:
    centred = samples - samples.mean(0)
    return centred.T @ centred / (len(samples) - 1)
