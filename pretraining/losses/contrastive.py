"""NT-Xent, the contrastive loss of SimCLR (Chen et al., arXiv 2002.05709, equation 1), on centred vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.host_copies import send


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Attracts the vectors of the two views of each sample and repels them from all other vectors of the batch.

    The mean of all vectors is subtracted before they are normalised. At first, the features of an encoder differ little
    between images: without centring all directions are similar, every cosine similarity is near 1, and the loss stays
    at chance for hundreds of steps (docs/method.md). The batch norm in SimCLR's projection head has the same effect.

    Args:
        first, second: vectors of the two views (N, D); row i of both belongs to sample i. Not yet normalised.
        temperature: temperature of the softmax over cosine similarities.

    Returns:
        The mean over all 2N vectors, in float32 or better; zero for a single sample, which has no negatives.

    Raises:
        ValueError: when the views do not have the same shape.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"views must be (N, D) and alike, found {tuple(first.shape)} and {tuple(second.shape)}")
    with torch.autocast(first.device.type, enabled=False):
        vectors = torch.cat([_precise(first), _precise(second)])
        vectors = F.normalize(vectors - vectors.mean(0), dim=1)
        similarities = vectors @ vectors.T / temperature
        diagonal = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        similarities = similarities.masked_fill(diagonal, float("-inf"))
        samples = len(first)
        partner = torch.arange(2 * samples, device=vectors.device).roll(samples)
        return F.cross_entropy(similarities, partner)


def cross_modal_loss(ct: Tensor, mr: Tensor, registered: Tensor, temperature: float = 0.5) -> Tensor | None:
    """NT-Xent between the CT and the MR of registered pairs.

    The views should share neither quarter turns nor cut-outs, and should not have attended to each other: they could
    then be matched without looking at the anatomy.

    Args:
        ct, mr: vectors of one view of every sample (N, D).
        registered: whether CT and MR of sample i are registered, bool (N,), on the CPU: reading it from a GPU would
            make the host wait in every step.
        temperature: temperature of the softmax over cosine similarities.

    Returns:
        None for fewer than two pairs, which have no negatives.
    """
    if int(registered.sum()) < 2:
        return None
    pairs = send(registered.nonzero().flatten(), ct.device)
    return contrastive_loss(ct[pairs], mr[pairs], temperature)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
