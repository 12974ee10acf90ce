"""NT-Xent, the contrastive loss of SimCLR (Chen et al., arXiv 2002.05709, equation 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Pulls the two views of each sample together and pushes all other vectors of the batch apart.

    Args:
        first, second: vectors of the two views (N, D); row i of both belongs to sample i. Normalised here.
        temperature: of the softmax over cosine similarities.

    Returns:
        The mean over all 2N vectors, in float32 or better. With a single sample there are no negatives: zero.

    Raises:
        ValueError: when the views do not have the same shape.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"views must be (N, D) and alike, found {tuple(first.shape)} and {tuple(second.shape)}")
    with torch.autocast(first.device.type, enabled=False):
        vectors = F.normalize(torch.cat([_precise(first), _precise(second)]), dim=1)
        similarities = vectors @ vectors.T / temperature
        itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        similarities = similarities.masked_fill(itself, float("-inf"))
        samples = len(first)
        partner = torch.arange(2 * samples, device=vectors.device).roll(samples)
        return F.cross_entropy(similarities, partner)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
