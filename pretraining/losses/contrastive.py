"""NT-Xent, the contrastive loss of SimCLR (Chen et al., arXiv 2002.05709, equation 1), on centred vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Pulls the two views of each sample together and pushes all other vectors of the batch apart.

    The mean of all vectors is taken away before they are normalised. An encoder begins with features that differ little
    from image to image: their directions are then all alike, every similarity is near 1, and the loss stays at chance
    for hundreds of steps (docs/method.md). SimCLR's batch norm in the projection head does the same, and more.

    Args:
        first, second: vectors of the two views (N, D); row i of both belongs to sample i. Centred and normalised here.
        temperature: of the softmax over cosine similarities.

    Returns:
        The mean over all 2N vectors, in float32 or better. With a single sample there are no negatives: zero.

    Raises:
        ValueError: when the views do not have the same shape.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"views must be (N, D) and alike, found {tuple(first.shape)} and {tuple(second.shape)}")
    with torch.autocast(first.device.type, enabled=False):
        vectors = torch.cat([_precise(first), _precise(second)])
        vectors = F.normalize(vectors - vectors.mean(0), dim=1)
        similarities = vectors @ vectors.T / temperature
        itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        similarities = similarities.masked_fill(itself, float("-inf"))
        samples = len(first)
        partner = torch.arange(2 * samples, device=vectors.device).roll(samples)
        return F.cross_entropy(similarities, partner)


def cross_modal_loss(ct: Tensor, mr: Tensor, paired: Tensor, temperature: float = 0.5) -> Tensor | None:
    """Pulls CT and MR of the same place together: NT-Xent between the modalities of registered pairs.

    One view of the CT meets the other view of the MR: views of the same number share turn and cut-outs, by which they
    could be matched.

    Args:
        ct, mr: vectors (2N, D), both views of each sample one after the other.
        paired: whether sample i's CT and MR show the same place, bool (N,), on the CPU: reading it from a GPU would
            make the host wait in every step.
        temperature: of the softmax over cosine similarities.

    Returns:
        The mean of both ways to pair the views; None with fewer than two pairs, which have no negatives.
    """
    if int(paired.sum()) < 2:
        return None
    pairs = paired.nonzero().flatten().to(ct.device)
    (ct_first, ct_second), (mr_first, mr_second) = ct.chunk(2), mr.chunk(2)
    ways = ((ct_first, mr_second), (ct_second, mr_first))
    return torch.stack([contrastive_loss(a[pairs], b[pairs], temperature) for a, b in ways]).mean()


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
