"""Samples of tokens of every layer from the crops of two domains, at the same places of registered crops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import triple
from pretraining.analysis.crops import Crop, CropSets
from pretraining.randomness import derived_seed
from pretraining.token_samples import MIN_FOREGROUND, foreground_tokens

# Maps (1, C, z, y, x) of an image by layer.
LayerMaps = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class LayerTokens:
    """Tokens of one layer and domain; row i is of crop i.

    Attributes:
        tokens: float32 (crops, samples, C).
        tissue: bool (crops, samples), which of them show tissue.
        pooled: float32 (crops, C), the mean over the crop.
        patients: of each crop.
        neighbours: float32 (crops, samples, C), tokens of the crop before, of another patient, at the places of this
            crop's samples; None where crops differ in size.
        neighbours_tissue: bool (crops, samples); None likewise.
        classes: int64 (crops, samples); None without labels.
    """

    tokens: Tensor
    tissue: Tensor
    pooled: Tensor
    patients: Sequence[str]
    neighbours: Tensor | None = None
    neighbours_tissue: Tensor | None = None
    classes: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Tokens to compare, bool (crops * samples,): those that show tissue; all if almost none does."""
        tissue = self.tissue.flatten()
        return tissue | (tissue.sum() < MIN_FOREGROUND)

    @property
    def group(self) -> Tensor:
        """Which of two groups of patients each token is from, bool (crops * samples,)."""
        numbers = {patient: number for number, patient in enumerate(dict.fromkeys(self.patients))}
        of_crops = torch.tensor([numbers[patient] % 2 == 0 for patient in self.patients])
        return of_crops.repeat_interleave(self.tokens.shape[1])

    @property
    def flat(self) -> Tensor:
        """All tokens (crops * samples, C)."""
        return self.tokens.flatten(0, 1)


# By layer, then the two domains.
Samples = dict[str, tuple[LayerTokens, LayerTokens]]


def sample_layers(maps: LayerMaps, crops: CropSets, tokens: int, seed: int) -> Samples:
    """Draws tokens of every layer.

    Registered crops are sampled at the same places.

    Args:
        maps: of a frozen encoder.
        crops: of two domains.
        tokens: of each domain and layer, divided among its crops; those of air are marked, not replaced.
        seed: of the draw of the places.
    """
    first, second = (sample_domain(maps, domain.crops, tokens, seed) for domain in crops)
    return {layer: (first[layer], second[layer]) for layer in first}


def sample_domain(maps: LayerMaps, crops: Sequence[Crop], tokens: int, seed: int) -> dict[str, LayerTokens]:
    """As :func:`sample_layers`, of one domain; the places depend on the seed, and the order and size of the crops."""
    share = -(-tokens // len(crops))
    same_size = len({crop.image.shape for crop in crops}) == 1
    rows: dict[str, list[dict[str, Tensor]]] = {}
    before: dict[str, list[dict[str, Tensor]]] = {}
    for number, crop in enumerate(crops):
        for layer, feature in maps(crop.image).items():
            grid = triple(feature.shape[2:])
            flat, tissue = feature[0].flatten(1).T.float(), foreground_tokens(crop.image, grid)[0]
            places = _places(seed, number, len(flat), share)
            row = {"tokens": flat[places], "tissue": tissue[places], "pooled": flat.mean(0)}
            if crop.classes is not None:
                row["classes"] = classes_on_grid(crop.classes, grid).flatten()[places]
            rows.setdefault(layer, []).append(row)
            if same_size:
                following = _places(seed, (number + 1) % len(crops), len(flat), share)
                before.setdefault(layer, []).append({"tokens": flat[following], "tissue": tissue[following]})
    patients = [crop.patient for crop in crops]
    samples = {}
    for layer, of_layer in rows.items():
        # Crops that differ in size may have fewer tokens than the share.
        least = min(len(row["tokens"]) for row in of_layer)
        stacked = {
            name: torch.stack([row[name] if name == "pooled" else row[name][:least] for row in of_layer])
            for name in of_layer[0]
        }
        if same_size:
            # What was read from crop i belongs to the row of crop i + 1.
            for name in ("tokens", "tissue"):
                rolled = torch.stack([row[name] for row in before[layer]]).roll(1, 0)
                stacked["neighbours" if name == "tokens" else "neighbours_tissue"] = rolled
            # Only the first row's neighbour, the last crop, may be of the same patient.
            stacked["neighbours_tissue"][0] &= patients[0] != patients[-1]
        samples[layer] = LayerTokens(patients=patients, **stacked)
    return samples


def classes_on_grid(classes: Tensor, grid: Sequence[int]) -> Tensor:
    """The class at the centre of each cell of a grid (z, y, x); classes int64 (z, y, x)."""
    return F.interpolate(classes[None, None].float(), size=tuple(grid), mode="nearest-exact")[0, 0].long()


def _places(seed: int, crop: int, available: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(derived_seed(seed, crop, available))
    return torch.randperm(available, generator=generator)[:count]
