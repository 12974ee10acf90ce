"""The linear layer of the voxel probe: multinomial logistic regression with weighted voxels and a ridge penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.voxel_probe.cases import Case
from pretraining.voxel_probe.features import Maps, at_voxels, resize

# Times the sum of squared weights of the standardised features, added to the mean negative log-likelihood.
PENALTY = 1e-4
ITERATIONS = 250
# Voxels that are fitted on: of a case, and of all cases together.
VOXELS_PER_CASE, VOXELS = 4_000, 30_000
# A channel that deviates less than this share of its largest value is constant.
CONSTANT = 1e-5


@dataclass(frozen=True)
class Sample:
    """Voxels of one case to fit on.

    Attributes:
        voxels: indices in the flattened grid of half resolution, int64 (N,).
        classes: classes of these voxels, int64 (N,).
        weights: how many voxels of the case each of them represents, float32 (N,).
    """

    voxels: Tensor
    classes: Tensor
    weights: Tensor


@dataclass(frozen=True)
class LinearLayer:
    """A fitted layer: logits are `features @ weight + bias`.

    Attributes:
        weight: float32 (channels, classes), the standardisation included.
        bias: float32 (classes,).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, maps: Maps, size: Sequence[int]) -> Tensor:
        """Logits (classes, z, y, x) on a grid; the layer is applied to each map before its interpolation.

        Args:
            maps: each (C, z, y, x), in the order of the fitted features.
            size: size of the grid (z, y, x).
        """
        parts = self.weight.split([len(feature) for feature in maps])
        total = self.bias.reshape(-1, 1, 1, 1).expand(-1, *size).clone()
        for feature, weight in zip(maps, parts, strict=True):
            total += resize(torch.einsum("czyx,ck->kzyx", feature.float(), weight), size)
        return total


def draw_sample(case: Case, classes: Tensor, cases: int, seed: int) -> Sample:
    """Draws voxels of a case: half of them background, the other half divided equally among the present classes.

    The weights undo the division: a weighted mean over the sample estimates the mean over all used voxels.

    Args:
        case: the case.
        classes: classes of its voxels, int64 (z, y, x), 0 for background.
        cases: how many cases are fitted on together; the more, the fewer voxels of each.
        seed: seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    flat, used = classes.flatten(), case.used.flatten()
    budget = max(min(VOXELS_PER_CASE, VOXELS // cases), 2)
    present = [int(value) for value in flat[used].unique()]
    foreground = [value for value in present if value]
    chosen, weights = [], []
    for value in present:
        voxels = (used & (flat == value)).nonzero()[:, 0]
        share = budget if not foreground else budget // 2 if value == 0 else budget // (2 * len(foreground))
        count = min(max(share, 1), len(voxels))
        chosen.append(voxels[torch.randperm(len(voxels), generator=generator)[:count]])
        weights.append(torch.full((count,), len(voxels) / count))
    voxels = torch.cat(chosen)
    return Sample(voxels, flat[voxels], torch.cat(weights))


def sample_features(maps: Maps, case: Case, sample: Sample) -> Tensor:
    """Features float32 (N, channels) of the voxels of a sample."""
    return at_voxels(maps, case.labels.shape, sample.voxels)


def fit(features: Tensor, classes: Tensor, weights: Tensor, number: int, penalty: float = PENALTY) -> LinearLayer:
    """Fits the layer by L-BFGS; the objective is convex.

    Args:
        features: float32 (N, channels); standardised with their weighted mean and deviation here.
        classes: int64 (N,).
        weights: float32 (N,).
        number: number of classes, background included; may exceed those that occur.
        penalty: times the sum of squared weights.
    """
    weights = weights / weights.sum()
    mean = weights @ features
    deviation = (weights @ (features - mean).square()).sqrt()
    varies = deviation > CONSTANT * features.abs().amax(0).clamp_min(1e-30)
    scale = torch.where(varies, 1 / deviation.clamp_min(1e-30), 0.0)
    standardised = (features - mean) * scale
    frequencies = torch.zeros(number).index_add(0, classes, weights)
    layer = torch.zeros(features.shape[1], number, requires_grad=True)
    # The best bias of a layer without weights. A class that does not occur gets about one voxel.
    bias = frequencies.clamp_min(1 / len(classes)).log().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [layer, bias], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=1e-6, tolerance_change=1e-8,
    )  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        likelihood = F.cross_entropy(torch.addmm(bias, standardised, layer), classes, reduction="none")
        loss = likelihood @ weights + penalty * layer.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    weight = (layer.detach() * scale[:, None]).float()
    return LinearLayer(weight, (bias.detach() - mean @ weight).float())
