"""Measures of the Domain Invariance Module's attention, and warnings when a run does not learn what it should."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pretraining.collections.collection import DOMAINS
from pretraining.losses.density import MIN_BANDWIDTH
from pretraining.monitoring.organs import organ_warnings

# Share of a run's steps after which the proxy tasks should be better than chance.
WARM_UP_SHARE = 0.25
# Intraclass correlation below which features at the same place are hardly more alike than others, and the part of it
# that other crops at the same place have too beyond which the place is most of it.
LOW_ICC = 0.1
LARGE_EFFECT_OF_PLACE = 0.3
# Effective rank, relative to the largest possible one, below which features are about to collapse.
LOW_RANK = 0.15


def attention_entropy(weights: Sequence[Tensor]) -> Tensor:
    """Mean entropy of attention rows (B, heads, queries, keys), relative to that of uniform attention.

    0 when each query attends to one key, 1 when it attends to all keys equally.
    """
    entropies = [_entropy(w).mean() / math.log(max(w.shape[-1], 2)) for w in weights]
    return torch.stack(entropies).mean().detach()


@torch.no_grad()
def attention_difference(ct: Sequence[Tensor], mr: Sequence[Tensor], registered: Tensor) -> Tensor | None:
    """How differently the two blocks of the module attend on registered crops.

    The Jensen-Shannon divergence between their attention rows relative to its maximum ln 2: 0 for equal attention, 1
    when they attend to different keys. Rows are first averaged over the heads, since heads have no order.

    Args:
        ct, mr: attention weights of each layer (B, heads, queries, keys).
        registered: bool (B,), which crops are registered; in others the blocks see different anatomy.

    Returns:
        A scalar; None without registered crops.
    """
    if not ct or not bool(registered.any()):
        return None
    divergences = []
    for first, second in zip(ct, mr, strict=True):
        p, q = first[registered].float().mean(1), second[registered].float().mean(1)
        divergences.append((_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2).mean() / math.log(2))
    return torch.stack(divergences).mean()


def health_warnings(means: Mapping[str, float], progress: float = 1.0) -> list[str]:
    """Warnings that follow from the means of a validation.

    Args:
        means: by name, as in the records; a missing name was not measured.
        progress: share of the run's steps taken so far; at the beginning, tasks may be at chance.
    """
    warnings = []
    if means.get("dim_change", 1.0) < 1e-3:
        warnings.append(
            f"the DIM does not change its input: its relative change is {means['dim_change']:.1e}. "
            "It then does not learn what CT and MR share. Try a higher --density_weight, or --dim none."
        )
    if means.get("attention_entropy", 0.0) > 0.999:
        warnings.append("attention in the DIM is uniform: it averages its tokens instead of choosing among them.")
    if means.get("attention_difference", 1.0) < 1e-4:
        warnings.append("the two blocks of the DIM attend alike on co-located crops: one block would suffice.")
    if means.get("feature_variance", 1.0) < 1e-6:
        warnings.append(
            "the DIM's outputs have collapsed: their divergence is small because all tokens are alike. "
            "Lower --density_weight or lengthen --density_warmup_steps."
        )
    for name in sorted(means):
        if name.startswith("rank_") and means[name] < LOW_RANK:
            warnings.append(
                f"{_place(name.removeprefix('rank_'))} use {means[name]:.0%} of the directions that they could use "
                "(effective rank), so a small divergence or loss may come from features that are nearly alike. Raise "
                "--variance_weight and --covariance_weight, or lower --density_weight."
            )
    if means.get("bandwidth", 1.0) <= MIN_BANDWIDTH * 1.001:
        warnings.append(
            f"the density bandwidth is at its floor of {MIN_BANDWIDTH}: half of all tokens are alike, and their "
            "divergence means nothing."
        )
    saturated = [name for name in sorted(means) if name.startswith("divergence_") and means[name] > 0.98]
    if saturated:
        places = ", ".join(_place(name.removeprefix("divergence_")) for name in saturated)
        warnings.append(
            f"the density divergence is saturated at ln 2 ({places}): CT and MR tokens do not overlap, and its "
            "gradient vanishes. Lower --density_dimensions, or lengthen --density_warmup_steps."
        )
    if progress >= WARM_UP_SHARE:
        warnings += _task_warnings(means) + organ_warnings(means)
    return warnings


def _task_warnings(means: Mapping[str, float]) -> list[str]:
    warnings = []
    for suffix, modality in _modalities(means):
        error, mean_error = means.get(f"masked_error{suffix}"), means.get(f"masked_error_of_mean{suffix}")
        if error is not None and mean_error is not None and error >= mean_error:
            warnings.append(
                f"inpainting{modality} is no better than the mean of the visible voxels: {error:.3f} against "
                f"{mean_error:.3f}. It needs more steps or a higher --learning_rate."
            )
        accuracy = means.get(f"rotation_accuracy{suffix}", 1.0)
        if "rotation" in means and accuracy < 0.3:
            warnings.append(f"rotation{modality} is at chance: {accuracy:.0%} of the quarter turns are recognised.")
    for name, views in (("contrastive_icc", "of two views"), ("cross_modal_icc", "in registered CT and MR")):
        if means.get(name, 1.0) < LOW_ICC:
            warnings.append(
                f"features at the same place {views} are hardly more alike than those of different places (intraclass "
                f"correlation {means[name]:.2f}). If {name.removesuffix('_icc')} falls all the same, all features "
                "become alike. More steps, --contrastive_loss correlation or a higher --variance_weight may help."
            )
        adjusted = means.get(f"{name}_adjusted", means.get(name, 0.0))
        if means.get(name, 0.0) - adjusted > LARGE_EFFECT_OF_PLACE:
            warnings.append(
                f"features at the same place {views} agree for a large part because they say where in the crop they "
                f"are: their intraclass correlation is {means[name]:.2f}, and {adjusted:.2f} relative to other crops "
                "at the same place. More steps can make this worse. Compare with --dim none, --dim_random_shift and "
                "--contrastive_loss adjusted_correlation in the voxel probe (docs/probing.md)."
            )
    if means.get("probe_accuracy", 0.0) > 0.95:
        warnings.append(
            f"a linear probe tells CT from MR in {means['probe_accuracy']:.0%} of the crops: the deepest features are "
            "not invariant."
        )
    return warnings


def _place(level: str) -> str:
    """Describes a level of the encoder, for messages."""
    places = {"paired": "the DIM's outputs for pairs", "single_image": "the DIM's outputs for single images"}
    return places.get(level, f"the features of stage {level.removeprefix('stage_')}")


def _modalities(means: Mapping[str, float]) -> list[tuple[str, str]]:
    """Suffix of measures and text for messages: of each modality that was measured, otherwise of their mean."""
    measured = [
        (f"_{domain}", f" of {domain}")
        for domain in DOMAINS
        if means.keys() & {f"masked_error_{domain}", f"rotation_accuracy_{domain}"}
    ]
    return measured or [("", "")]


def _entropy(rows: Tensor) -> Tensor:
    return -(rows * rows.clamp_min(1e-12).log()).sum(-1)
