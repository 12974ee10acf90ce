"""What an encoder makes of a contrast that it has not seen: features of crops against those of the same crops in
random contrasts, layer by layer, as a function of the strength of the change.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.random_contrast import ContrastParameters, apply_contrast, draw_contrast
from pretraining.analysis.crops import Crop, CropSets
from pretraining.analysis.domain_gap import token_cka
from pretraining.analysis.tokens import LayerMaps, Samples, sample_domain
from pretraining.randomness import derived_seed

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Similarity(NamedTuple):
    """How alike the features of the same places are; 1: the contrast makes no difference.

    Attributes:
        cka: debiased linear CKA of the tokens; None with fewer than 4 that show tissue.
        cosine: mean cosine similarity of the tokens, from which the mean of all original tokens was subtracted.
    """

    cka: float | None
    cosine: float


class ContrastShift(NamedTuple):
    """The similarities of one encoder and domain.

    Attributes:
        by_strength: by layer, one for each strength: mean over contrasts.
        other_patient: by layer: to tokens of another patient's crop at the same places; what positions alone give.
        other_domain: by layer: to the registered crop of the other domain; None where crops are not registered.
    """

    by_strength: dict[str, list[Similarity]]
    other_patient: dict[str, Similarity]
    other_domain: dict[str, Similarity] | None


def blend_contrast(image: Tensor, parameters: ContrastParameters, strength: float) -> Tensor:
    """An image between its own contrast (0) and a random one (1), with its own mean and standard deviation.

    Args:
        image: (B, 1, z, y, x).
        parameters: of the random contrast.
        strength: from 0 to 1.
    """
    if strength == 0:
        return image
    blended = (1 - strength) * image + strength * apply_contrast(image, parameters)
    mean, deviation = (statistic((1, 2, 3, 4), keepdim=True) for statistic in (image.mean, image.std))
    own_mean, own_deviation = (statistic((1, 2, 3, 4), keepdim=True) for statistic in (blended.mean, blended.std))
    return (blended - own_mean) / own_deviation.clamp_min(1e-6) * deviation + mean


def similarity(first: Tensor, second: Tensor, mask: Tensor, seed: int = 0) -> Similarity:
    """Compares tokens of the same places.

    Args:
        first: original tokens (crops, samples, C).
        second: tokens to compare (crops, samples, C).
        mask: bool (crops, samples), tokens to use.
        seed: of their order in CKA's minibatches.
    """
    mean = first[mask].mean(0)
    cosine = F.cosine_similarity(first[mask] - mean, second[mask] - mean, dim=-1)
    return Similarity(token_cka(first, second, mask, seed), float(cosine.mean()))


def measure_shift(
    maps: LayerMaps,
    crops: CropSets,
    samples: Samples,
    domain: int,
    strengths: Sequence[float],
    contrasts: int,
    tokens: int,
    seed: int,
) -> ContrastShift:
    """Compares the features of one domain's crops with those of the same crops in random contrasts.

    Args:
        maps: of a frozen encoder.
        crops: of two domains.
        samples: their tokens, from :func:`sample_layers` with the same number and seed.
        domain: 0 or 1, whose crops are changed.
        strengths: of the change.
        contrasts: random ones of each crop, over which similarities are averaged.
        tokens: of each layer, divided among the crops; only those that show tissue are used.
        seed: of the places and the contrasts.
    """
    originals = {layer: sides[domain] for layer, sides in samples.items()}
    by_strength: dict[str, list[Similarity]] = {layer: [] for layer in originals}
    own_crops = list(crops)[domain].crops
    for strength in strengths:
        found: dict[str, list[Similarity]] = {layer: [] for layer in originals}
        for contrast in range(1 if strength == 0 else contrasts):
            changed = [
                Crop(_changed(crop, strength, derived_seed(seed, n, contrast)), crop.patient)
                for n, crop in enumerate(own_crops)
            ]
            again = sample_domain(maps, changed, tokens, seed)
            for layer, original in originals.items():
                found[layer].append(similarity(original.tokens, again[layer].tokens, original.tissue, seed))
        for layer, values in found.items():
            by_strength[layer].append(mean_similarity(values))
    other_patient, other_domain = {}, {}
    for layer, own in originals.items():
        assert own.neighbours is not None
        assert own.neighbours_tissue is not None
        other_patient[layer] = similarity(own.tokens, own.neighbours, own.tissue & own.neighbours_tissue, seed)
        other = samples[layer][1 - domain]
        if crops.registered:
            other_domain[layer] = similarity(own.tokens, other.tokens, own.tissue & other.tissue, seed)
    return ContrastShift(by_strength, other_patient, other_domain or None)


def voxel_correlation(crops: Sequence[Crop], strengths: Sequence[float], contrasts: int, seed: int) -> list[float]:
    """How strong a change is: mean correlation coefficient between crops and the same crops in random contrasts."""
    correlations = []
    for strength in strengths:
        values = []
        for number, crop in enumerate(crops):
            for contrast in range(contrasts):
                changed = _changed(crop, strength, derived_seed(seed, number, contrast))
                values.append(float(torch.corrcoef(torch.stack([crop.image.flatten(), changed.flatten()]))[0, 1]))
        correlations.append(fmean(values))
    return correlations


def mean_similarity(values: Sequence[Similarity]) -> Similarity:
    """Mean of each measure; None where one is missing."""
    ckas = [value.cka for value in values if value.cka is not None]
    return Similarity(fmean(ckas) if len(ckas) == len(values) else None, fmean(value.cosine for value in values))


def _changed(crop: Crop, strength: float, seed: int) -> Tensor:
    return blend_contrast(crop.image, draw_contrast([torch.Generator().manual_seed(seed)]), strength)
