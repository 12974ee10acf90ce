"""NT-Xent, the contrastive loss of SimCLR (Chen et al., arXiv 2002.05709, equation 1), on centred vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Attracts the vectors of the two views of each sample and repels them from all other vectors of the batch.

    The mean of all vectors is subtracted before they are normalised. At first, the features of an encoder differ little
    between images: without centring all directions are similar, every cosine similarity is near 1, and the loss stays
    at chance for hundreds of steps (docs/method.md). The batch norm in SimCLR's projection head has the same effect.

    Args:
        first, second: vectors of the two views (N, D); row i of both belongs to sample i. Not yet normalised.
        temperature: of the softmax over cosine similarities.

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


def cross_modal_loss(ct: Tensor, mr: Tensor, paired: Tensor, temperature: float = 0.5) -> Tensor | None:
    """NT-Xent between the CT and the MR of registered pairs.

    The first view of the CT is matched with the second view of the MR and the reverse, because views with the same
    number share quarter turns and cut-outs, from which they could be matched without looking at the anatomy.

    Args:
        ct, mr: vectors (2N, D), the first views of all samples and then the second views.
        paired: whether CT and MR of sample i are registered, bool (N,), on the CPU: reading it from a GPU would make
            the host wait in every step.
        temperature: of the softmax over cosine similarities.

    Returns:
        The mean over both combinations of views; None for fewer than two pairs, which have no negatives.
    """
    if int(paired.sum()) < 2:
        return None
    pairs = paired.nonzero().flatten().to(ct.device)
    (ct_first, ct_second), (mr_first, mr_second) = ct.chunk(2), mr.chunk(2)
    combinations = ((ct_first, mr_second), (ct_second, mr_first))
    return torch.stack([contrastive_loss(a[pairs], b[pairs], temperature) for a, b in combinations]).mean()


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
