"""How different the features of two domains are, layer by layer: JSD, MMD, registered crops (CKA, ICC), a probe."""

from __future__ import annotations

import math
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from pretraining.analysis.tokens import LayerTokens
from pretraining.losses.consistency import intraclass_correlation, view_moments
from pretraining.losses.density import density_matching
from pretraining.monitoring.feature_rank import effective_rank
from pretraining.monitoring.probes import MIN_SAMPLES, minibatch_cka, modality_accuracy

# Random projections that the divergence is averaged over.
PROJECTIONS = 4


class DomainGap(NamedTuple):
    """Measures of one layer.

    Attributes:
        divergence: Jensen-Shannon divergence of the tokens' densities relative to ln 2, mean over random projections.
        floor: the same between crops of one domain: smaller divergences mean nothing.
        mmd: squared maximum mean discrepancy of the standardised tokens in all their channels, biased estimate.
        cka: debiased linear CKA of tokens at the same places of registered crops; None without.
        cka_other_patient: the same with tokens of another patient's crop at the same places: what positions alone
            give.
        icc: intraclass correlation of tokens at the same places of registered crops; None without. Unlike CKA it does
            not fit a linear map between the domains, as a decoder that both share does not.
        icc_other_patient: the same with tokens of another patient's crop at the same places.
        cka_crops: debiased linear CKA of crop means of registered crops; None without, or with fewer than 4.
        probe_accuracy: of a linear classifier of crop means, cross-validated by patient; 0.5 is chance.
        rank: effective rank of the tokens of a domain relative to its channels; near 0: collapsed.
        deviation: standard deviation of the tokens of a domain, root mean square over the channels; near 0: shrunken.
    """

    divergence: float
    floor: float
    mmd: float
    cka: float | None
    cka_other_patient: float | None
    icc: float | None
    icc_other_patient: float | None
    cka_crops: float | None
    probe_accuracy: float
    rank: float
    deviation: float


def measure_gap(first: LayerTokens, second: LayerTokens, registered: bool, seed: int, dimensions: int = 8) -> DomainGap:
    """Measures the tokens of one layer.

    Args:
        first, second: of the two domains, each with two crops at least.
        registered: whether crop i of both shows the same place.
        seed: of the random projections.
        dimensions: of these, for the divergence.
    """
    matches = [
        density_matching(
            first.flat, second.flat, ct_mask=first.mask, mr_mask=second.mask, ct_groups=first.group,
            mr_groups=second.group, dimensions=dimensions, generator=torch.Generator().manual_seed(seed + number),
            # The squared discrepancy is a loss, beside which the divergence is measured. It needs no projection.
            loss="kde_jsd" if number else "mmd",
        )
        for number in range(PROJECTIONS)
    ]  # fmt: skip
    of_crops = registered and len(first.pooled) >= MIN_SAMPLES
    ranks = [effective_rank(side.flat, side.mask.float()) / side.flat.shape[1] for side in (first, second)]
    deviations = [side.flat[side.mask].var(0).mean().sqrt() for side in (first, second)]
    # Crops that are not registered need not be as many in both domains.
    same = (first.tokens, second.tokens, first.tissue & second.tissue) if registered else None
    other = _other_patient(first, second) if registered else None
    return DomainGap(
        divergence=fmean(float(match.divergence) for match in matches) / math.log(2),
        floor=fmean(float(match.floor) for match in matches if match.floor is not None) / math.log(2),
        mmd=float(matches[0].loss),
        cka=token_cka(*same, seed) if same else None,
        cka_other_patient=token_cka(*other, seed) if other else None,
        icc=token_icc(*same) if same else None,
        icc_other_patient=token_icc(*other) if other else None,
        cka_crops=minibatch_cka(first.pooled, second.pooled) if of_crops else None,
        probe_accuracy=modality_accuracy(
            first.pooled.double(), second.pooled.double(), first.patients, second.patients
        ),
        rank=float(torch.stack(ranks).mean()),
        deviation=float(torch.stack(deviations).mean()),
    )  # fmt: skip


def token_cka(first: Tensor, second: Tensor, mask: Tensor, seed: int) -> float | None:
    """Debiased CKA of two sets of tokens, row by row; None for fewer than 4 rows.

    Args:
        first, second: (crops, samples, C) and (crops, samples, D); token by token of the same place.
        mask: bool (crops, samples), tokens to use.
        seed: of their order, since CKA is summed over minibatches, which should mix crops.
    """
    chosen = mask.flatten().nonzero()[:, 0]
    if len(chosen) < MIN_SAMPLES:
        return None
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
    return minibatch_cka(first.flatten(0, 1)[chosen], second.flatten(0, 1)[chosen])


def token_icc(first: Tensor, second: Tensor, mask: Tensor) -> float | None:
    """Intraclass correlation of two sets of tokens, as pretraining records it; None for fewer than 4 tokens.

    Args:
        first, second: (crops, samples, C); token by token of the same place.
        mask: bool (crops, samples), tokens to use.
    """
    if mask.sum() < MIN_SAMPLES:
        return None
    no_turn = torch.zeros(1, dtype=torch.int64)
    # As one map of (1, 1, N) places.
    own, other = (tokens[mask].T[None, :, None, None] for tokens in (first, second))
    return float(intraclass_correlation(view_moments(own, other, no_turn, no_turn)))


def _other_patient(first: LayerTokens, second: LayerTokens) -> tuple[Tensor, Tensor, Tensor] | None:
    """Tokens, those of the other domain and of another patient at the same places, and which of them to use."""
    if second.neighbours is None or second.neighbours_tissue is None:
        return None
    return first.tokens, second.neighbours, first.tissue & second.neighbours_tissue
