"""Do the two blocks of the Domain Invariance Module attend differently, and where do they look?

That two blocks differ means little by itself: blocks with random weights differ as well. Each difference is therefore
measured next to others of the same kind: on crops that are not registered, with the same image in both blocks (the
weights alone), with one block and exchanged images (the images alone), between heads, and between unrelated queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.cell_grid import Spacing
from nnunetv2_swinfuse.architecture.domain_invariance import DomainInvariance, PairOutput
from nnunetv2_swinfuse.architecture.topology import Triple, triple
from pretraining.analysis.crops import CropSets
from pretraining.monitoring.health import attention_difference, attention_entropy
from pretraining.randomness import derived_seed
from pretraining.token_samples import foreground_tokens
from pretraining.voxel_probe.encoders import FrozenEncoder

# Attention weights (1, heads, queries, keys) of each layer.
Weights = Sequence[Tensor]
DIFFERENCES = (
    "registered",
    "unregistered",
    "same image",
    "same block",
    "heads",
    "other queries",
    "other partner",
)
RELATIVE = ("entropy", "distance", "tissue")


def difference(first: Weights, second: Weights) -> float:
    """Jensen-Shannon divergence / ln 2 of attention rows, heads averaged: 0 for equal rows, 1 for disjoint ones."""
    value = attention_difference(first, second, torch.ones(len(first[0]), dtype=torch.bool))
    assert value is not None
    return float(value)


def head_difference(weights: Weights) -> float:
    """The mean of :func:`difference` over all pairs of heads of a block; 0 with a single head."""
    pairs = list(combinations(range(weights[0].shape[1]), 2))
    return fmean(difference([w[:, [a]] for w in weights], [w[:, [b]] for w in weights]) for a, b in pairs or [(0, 0)])


def cell_centres(shape: Triple, grid: Triple, spacing: Spacing) -> Tensor:
    """Centres of the cells in mm from the map's corner, float32 (cells, 3).

    Args:
        shape: of the map in tokens (z, y, x).
        grid: cells (z, y, x).
        spacing: of the tokens, mm (z, y, x).
    """
    axes = [
        (torch.arange(cells) + 0.5) * (size * distance / cells)
        for size, cells, distance in zip(shape, grid, spacing, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


def attended_distance(weights: Weights, queries: Tensor, centres: Tensor) -> tuple[float, float]:
    """Mean distance in mm between a query and what it attends to, and the same for uniform attention.

    Args:
        weights: attention of these queries (1, heads, queries, keys) of each layer.
        queries: indices of the cells that they belong to, int64 (queries,).
        centres: of all cells, mm (keys, 3).
    """
    distances = torch.cdist(centres[queries], centres)
    return fmean(float((w * distances).sum(-1).mean()) for w in weights), float(distances.mean())


@torch.no_grad()
def attention_of_crops(network: FrozenEncoder, crops: CropSets, seed: int = 0) -> list[tuple[str, dict[str, float]]]:
    """The patient and the measures, by name, of each registered pair of crops.

    All are of queries with tissue in both images, and in the MR of the other patient that `unregistered` takes. Pairs
    without two such queries are left out.

    The differences of :data:`DIFFERENCES` are between the rows of the same query:

    | name | first | second |
    | --- | --- | --- |
    | `registered` | CT block, CT attends to its MR | MR block, that MR attends to that CT |
    | `unregistered` | CT block, CT attends to another patient's MR | MR block, that MR attends to this CT |
    | `same image` | CT block | MR block, both with the same image as queries and keys |
    | `same block` | a block, CT attends to MR | the same block, MR attends to CT |
    | `heads` | a head | another head of the same block |
    | `other queries` | CT block | MR block, the rows of other queries |
    | `other partner` | a block, its partner registered | the same block, the partner of another patient |

    Those of :data:`RELATIVE` are 1 for uniform attention: `entropy`; `distance`, the mean distance in mm between a
    query and what it attends to; `tissue`, the share of attention on cells with tissue divided by the share of such
    cells. `distance in mm` is not relative.

    Args:
        network: an encoder with a Domain Invariance Module.
        crops: registered ones, of two patients or more.
        seed: of the permutation of the queries.
    """
    module = network.encoder.domain_invariance
    assert module is not None
    embeddings = [[network.patch_embed(crop.image) for crop in domain.crops] for domain in crops]
    patients = crops.first.patients
    rows = []
    for number, (ct, mr) in enumerate(zip(*embeddings, strict=True)):
        grid = module.grid(triple(ct.shape[2:]))
        tissue = [foreground_tokens(domain.crops[number].image, grid)[0] for domain in crops]
        # The crop before; in front of the first one, the last one of another patient.
        other = next(n for n in range(number - 1, number - len(patients), -1) if patients[n] != patients[number])
        # The queries of the MR block of `unregistered` are those of the other patient's MR.
        other_tissue = foreground_tokens(crops.second.crops[other].image, grid)[0]
        queries = (tissue[0] & tissue[1] & other_tissue).nonzero()[:, 0]
        if len(queries) >= 2:
            others = embeddings[0][other], embeddings[1][other]
            generator = torch.Generator().manual_seed(derived_seed(seed, number))
            measures = _measures(module, (ct, mr), others, queries, tissue, generator)
            rows.append((crops.first.crops[number].patient, measures))
    return rows


def _measures(
    module: DomainInvariance,
    pair: tuple[Tensor, Tensor],
    others: tuple[Tensor, Tensor],
    queries: Tensor,
    tissue: Sequence[Tensor],
    generator: torch.Generator,
) -> dict[str, float]:
    (ct, mr), (other_ct, other_mr) = pair, others

    def attend(first: Tensor, second: Tensor) -> tuple[Weights, Weights]:
        pair = module.forward_pair(first, second, need_weights=True)
        return [w[:, :, queries] for w in pair.ct_weights], [w[:, :, queries] for w in pair.mr_weights]

    by_ct, by_mr = attend(ct, mr)
    unregistered = attend(ct, other_mr)
    by_mr_of_other = attend(other_ct, mr)[1]
    exchanged = attend(mr, ct)
    permuted = [w[:, :, torch.randperm(len(queries), generator=generator)] for w in by_mr]
    shape = triple(ct.shape[2:])
    centres = cell_centres(shape, module.grid(shape), module.spacing)
    places = [attended_distance(weights, queries, centres) for weights in (by_ct, by_mr)]
    return {
        "registered": difference(by_ct, by_mr),
        "unregistered": difference(*unregistered),
        "same image": fmean(difference(*attend(image, image)) for image in pair),
        "same block": fmean([difference(by_ct, exchanged[0]), difference(by_mr, exchanged[1])]),
        "heads": fmean([head_difference(by_ct), head_difference(by_mr)]),
        "other queries": difference(by_ct, permuted),
        "other partner": fmean([difference(by_ct, unregistered[0]), difference(by_mr, by_mr_of_other)]),
        "entropy": fmean([float(attention_entropy(weights)) for weights in (by_ct, by_mr)]),
        "distance": fmean(distance / uniform for distance, uniform in places),
        "distance in mm": fmean(distance for distance, _ in places),
        # The keys of the CT block are those of the MR image, and vice versa.
        "tissue": fmean([_preference(by_ct, tissue[1]), _preference(by_mr, tissue[0])]),
    }


def pair_attention(network: FrozenEncoder, crops: CropSets, number: int) -> PairOutput:
    """The module's outputs with attention weights for one pair of crops."""
    module = network.encoder.domain_invariance
    assert module is not None
    with torch.no_grad():
        ct, mr = (network.patch_embed(domain.crops[number].image) for domain in crops)
        return module.forward_pair(ct, mr, need_weights=True)


def _preference(weights: Weights, marked: Tensor) -> float:
    """Share of attention on marked keys, divided by their share of all keys; 1 if none is marked."""
    if not bool(marked.any()):
        return 1.0
    return fmean(float(w[..., marked].sum(-1).mean()) for w in weights) / float(marked.float().mean())
