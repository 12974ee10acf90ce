"""Variance and covariance terms of VICReg (Bardes et al., arXiv 2105.04906, equations 1, 3): features keep their rank.

They are computed over tokens, as in VICRegL (arXiv 2210.01571), not over images: a batch of two images has no
covariance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretraining.losses.weighted import weighted_mean, weights_of

# Standard deviation that every channel should reach. Features are normalised token by token, so that of a channel is 1
# if all channels vary alike around 0.
TARGET_DEVIATION = 1.0
# Added to variances, as in VICReg: the gradient of a square root at 0 is not finite.
EPSILON = 1e-4


def variance_loss(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the channels of `max(0, 1 - standard deviation)`; 0 once every channel deviates by 1 or more.

    Args:
        tokens: (N, C).
        mask: bool (N,), the tokens to use; all when None. Fewer than two have no variance: the loss is then 0.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        covariance, weights = _covariance(tokens, mask)
        deviation = (covariance.diagonal() + EPSILON).sqrt()
        return (TARGET_DEVIATION - deviation).clamp_min(0).mean() * (weights.sum() > 1)


def covariance_loss(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of the squared covariances between different channels, divided by the number of channels.

    Args:
        tokens, mask: see :func:`variance_loss`.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        covariance, _ = _covariance(tokens, mask)
        channels = len(covariance)
        return (covariance.square().sum() - covariance.diagonal().square().sum()) / channels


def _covariance(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Unbiased covariance matrix (C, C) of the tokens inside the mask, and their weights (N,)."""
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    weights = weights_of(tokens, mask)
    # Clamped, so that an empty mask gives zeros instead of NaN.
    centred = tokens - weighted_mean(tokens, weights.clamp_min(torch.finfo(weights.dtype).tiny))
    centred = centred * weights[:, None]
    return centred.T @ centred / (weights.sum() - 1).clamp_min(1), weights
