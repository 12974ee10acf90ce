"""Whether a run learns what it is meant to: measures of the Domain Invariance Module, and what to warn of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pretraining.collections.collection import DOMAINS
from pretraining.losses.density import SMALLEST_BANDWIDTH

# Of a run, after which the proxy tasks should have been learnt better than by chance.
EARLY = 0.25


def attention_entropy(weights: Sequence[Tensor]) -> Tensor:
    """Mean entropy of attention rows (B, heads, queries, keys), relative to that of uniform attention.

    0 when each query attends to one key, 1 when it attends to all alike.
    """
    entropies = [_entropy(w).mean() / math.log(max(w.shape[-1], 2)) for w in weights]
    return torch.stack(entropies).mean().detach()


@torch.no_grad()
def attention_difference(ct: Sequence[Tensor], mr: Sequence[Tensor], paired: Tensor) -> Tensor | None:
    """How differently the two blocks of the module attend, where both see the same place.

    The Jensen-Shannon divergence between their attention rows, averaged over the heads first since heads have no
    order, relative to its maximum ln 2: 0 when both attend alike, 1 when they share no key.

    Args:
        ct, mr: attention weights of each layer (B, heads, queries, keys).
        paired: which crops are co-located (B,); elsewhere the blocks see different anatomy.

    Returns:
        None without co-located crops.
    """
    if not ct or not bool(paired.any()):
        return None
    divergences = []
    for first, second in zip(ct, mr, strict=True):
        p, q = first[paired].float().mean(1), second[paired].float().mean(1)
        divergences.append((_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2).mean() / math.log(2))
    return torch.stack(divergences).mean()


def health_warnings(means: Mapping[str, float], progress: float = 1.0) -> list[str]:
    """In words, what went wrong according to a validation's means.

    Args:
        means: by name, as they stand in the records; what is not there was not measured.
        progress: share of the run's steps that were taken; tasks may be at chance in the beginning.
    """
    warnings = []
    if means.get("dim_change", 1.0) < 1e-3:
        warnings.append(
            f"the DIM does not change its input: its relative change is {means['dim_change']:.1e}. "
            "What CT and MR share is then not learnt there; a higher --density_weight or --dim none may be honest."
        )
    if means.get("attention_entropy", 0.0) > 0.999:
        warnings.append("attention in the DIM is uniform: it averages its tokens instead of choosing among them.")
    if means.get("attention_difference", 1.0) < 1e-4:
        warnings.append("the two blocks of the DIM attend alike on co-located crops: one block would do.")
    if means.get("feature_variance", 1.0) < 1e-6 or means.get("effective_rank", 2.0) < 1.5:
        warnings.append(
            "the DIM's outputs have collapsed: their divergence is small because all tokens are alike. "
            "Lower --density_weight or lengthen --density_warmup_steps."
        )
    if means.get("bandwidth", 1.0) <= SMALLEST_BANDWIDTH * 1.001:
        warnings.append(
            f"the density bandwidth is at its floor of {SMALLEST_BANDWIDTH}: half of all tokens are alike, and their "
            "divergence means nothing."
        )
    if means.get("divergence_share", 0.0) > 0.98:
        warnings.append(
            "the density divergence is saturated at ln 2: CT and MR tokens do not overlap, and its gradient vanishes. "
            "Lower --density_dimensions, or lengthen --density_warmup_steps."
        )
    if progress >= EARLY:
        warnings += _task_warnings(means)
    return warnings


def _task_warnings(means: Mapping[str, float]) -> list[str]:
    warnings = []
    for suffix, of in _modalities(means):
        error, of_mean = means.get(f"masked_error{suffix}"), means.get(f"masked_error_of_mean{suffix}")
        if error is not None and of_mean is not None and error >= of_mean:
            warnings.append(
                f"inpainting{of} is no better than the mean of what is visible: {error:.3f} against {of_mean:.3f}. "
                "It needs more steps or a higher --learning_rate."
            )
        accuracy = means.get(f"rotation_accuracy{suffix}", 1.0)
        if "rotation" in means and accuracy < 0.3:
            warnings.append(f"rotation{of} is at chance: {accuracy:.0%} of the quarter turns are recognised.")
    if means.get("probe_accuracy", 0.0) > 0.95:
        warnings.append(
            f"a linear probe tells CT from MR in {means['probe_accuracy']:.0%} of the crops: the deepest features are "
            "not invariant."
        )
    return warnings


def _modalities(means: Mapping[str, float]) -> list[tuple[str, str]]:
    """What stands behind the names of measures, and in words: each modality where it was measured, else their mean."""
    measured = [
        (f"_{domain}", f" of {domain}")
        for domain in DOMAINS
        if means.keys() & {f"masked_error_{domain}", f"rotation_accuracy_{domain}"}
    ]
    return measured or [("", "")]


def _entropy(rows: Tensor) -> Tensor:
    return -(rows * rows.clamp_min(1e-12).log()).sum(-1)
