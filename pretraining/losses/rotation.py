"""Prediction of the quarter turns of an image (Gidaris et al., arXiv 1803.07728; in 3D as in Swin UNETR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotation_loss(logits: Tensor, turns: Tensor, turnable: Tensor) -> Tensor:
    """Mean cross-entropy over four classes of the crops that could be turned, in float32 or better.

    Args:
        logits: (N, 4).
        turns: number of quarter turns, int64 (N,), 0 to 3.
        turnable: which crops take part, bool (N,).

    Returns:
        0, with gradients of 0, if no crop takes part: all parameters must have a gradient in every process.
    """
    with torch.autocast(logits.device.type, enabled=False):
        precise = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(precise, turns, reduction="none")
        return (losses * turnable).sum() / turnable.sum().clamp_min(1)


def rotation_accuracy(logits: Tensor, turns: Tensor, turnable: Tensor) -> Tensor:
    """Share of the crops that take part whose turns are predicted correctly; 0.25 by chance, 0 if none takes part."""
    return ((logits.argmax(1) == turns) & turnable).sum() / turnable.sum().clamp_min(1)
