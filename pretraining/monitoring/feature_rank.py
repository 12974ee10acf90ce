"""Effective rank: how many directions a set of features uses."""

from __future__ import annotations

import torch
from torch import Tensor

from pretraining.losses.weighted import weighted_mean, weights_of


def effective_rank(tokens: Tensor, weights: Tensor | None = None) -> Tensor:
    """Exponential of the entropy of the normalised spectrum of the centred tokens (Roy and Vetterli, EUSIPCO 2007).

    From 1, for tokens that are all alike or vary along one line, to C. Its singular values make the host wait for a
    GPU, so it is measured in validation only.

    Args:
        tokens: (N, C).
        weights: (N,), 1 for tokens to use, 0 for tokens to ignore; all 1 when None.

    Values that are not finite count as zeros: the loss of such tokens is not finite either, which stops the run.
    """
    weights = weights_of(tokens, None) if weights is None else weights
    # Rows of zeros add nothing to the spectrum.
    centred = (tokens - weighted_mean(tokens, weights)) * weights[:, None]
    # svdvals raises for values that are not finite, before the training loop could report a diverged run.
    spectrum = torch.linalg.svdvals(centred.nan_to_num(0.0, 0.0, 0.0))
    shares = spectrum / spectrum.sum().clamp_min(1e-12)
    return (-(shares * shares.clamp_min(1e-12).log()).sum()).exp()
