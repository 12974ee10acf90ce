"""Prediction of the quarter turns of an image (Gidaris et al., arXiv 1803.07728; in 3D as in Swin UNETR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotation_loss(logits: Tensor, turns: Tensor) -> Tensor:
    """Cross-entropy over four classes, in float32 or better.

    Args:
        logits: (N, 4).
        turns: number of quarter turns, int64 (N,), 0 to 3.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), turns)


def rotation_accuracy(logits: Tensor, turns: Tensor) -> Tensor:
    """Share of the samples whose turns are predicted correctly; 0.25 by chance."""
    return (logits.argmax(1) == turns).float().mean()
