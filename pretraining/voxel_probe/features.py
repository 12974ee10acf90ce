"""Features of voxels at half resolution: of a frozen encoder, from neighbourhood statistics, from coordinates.

Features are lists of maps (C, z, y, x) of any resolution; :func:`at_voxels` reads interpolated values at some voxels,
and :mod:`linear` applies a linear layer to each map before interpolation, which gives the same and costs less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.encoder import DomainInvariantEncoder

Maps = list[Tensor]
# Maps of an image (1, 1, z, y, x).
Features = Callable[[Tensor], Maps]

# Sides in voxels of the neighbourhoods of the hand-made features.
NEIGHBOURHOODS = (4, 8, 16)
# Degree of the polynomials of the coordinates.
DEGREE = 3


def encoder_features(patch_embed: nn.Module, encoder: DomainInvariantEncoder) -> Features:
    """The embedding and all feature maps of a frozen encoder that gets a single image, as in fine-tuning."""

    @torch.no_grad()
    def features(image: Tensor) -> Maps:
        embedding = patch_embed(image)
        return [feature[0] for feature in (embedding, *encoder(embedding))]

    return features


@torch.no_grad()
def handmade_features(image: Tensor) -> Maps:
    """Neighbourhood statistics without learning: 32 channels.

    The 8 voxels of each voxel at half resolution; of cubes of 4, 8 and 16 voxels around it the mean and the standard
    deviation, and the means of the 6 cubes next to it, half a side away.
    """
    z, y, x = (size // 2 for size in image.shape[2:])
    blocks = image[0, 0].reshape(z, 2, y, 2, x, 2).permute(1, 3, 5, 0, 2, 4).reshape(8, z, y, x)
    maps = [blocks]
    for side in NEIGHBOURHOODS:
        half = side // 2
        padded = F.pad(image, (half - 1,) * 6, mode="replicate")
        # The window of an output voxel is centred on its block of 2 x 2 x 2 voxels.
        mean, square = (F.avg_pool3d(values, side, 2) for values in (padded, padded.square()))
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        maps += [mean[0], deviation[0]]
        maps += [_shift(mean, axis, sign * max(half // 2, 1))[0] for axis in (2, 3, 4) for sign in (-1, 1)]
    return [torch.cat(maps)]


def coordinate_features(image: Tensor) -> Maps:
    """Polynomials up to the third degree of the position in the image, each axis from -1 to 1: 19 channels."""
    sizes = [size // 2 for size in image.shape[2:]]
    axes = torch.meshgrid(*((torch.arange(n) + 0.5) * 2 / n - 1 for n in sizes), indexing="ij")
    monomials = [
        torch.stack([axes[axis] for axis in chosen]).prod(0)
        for degree in range(1, DEGREE + 1)
        for chosen in combinations_with_replacement(range(3), degree)
    ]
    return [torch.stack(monomials)]


def with_coordinates(features: Features) -> Features:
    """Adds the coordinates: every arm is told where a voxel is, so that none gains from encoding positions."""

    def with_positions(image: Tensor) -> Maps:
        return [*features(image), *coordinate_features(image)]

    return with_positions


def at_voxels(maps: Sequence[Tensor], size: Sequence[int], voxels: Tensor) -> Tensor:
    """Interpolated features (N, channels of all maps) of voxels.

    Args:
        maps: each (C, z, y, x), of any resolution.
        size: size of the grid that the voxels belong to (z, y, x).
        voxels: indices in the flattened grid, int64 (N,).
    """
    return torch.cat([resize(feature, size).flatten(1)[:, voxels].T for feature in maps], 1).float()


def resize(feature: Tensor, size: Sequence[int]) -> Tensor:
    """A map (C, z, y, x) on a grid of another size, trilinear; averaged first where the grid is coarser."""
    feature = feature[None].float()
    factors = tuple(max(old // new, 1) for old, new in zip(feature.shape[2:], size, strict=True))
    if max(factors) > 1:
        feature = F.avg_pool3d(feature, factors)
    if tuple(feature.shape[2:]) != tuple(size):
        feature = F.interpolate(feature, size=tuple(size), mode="trilinear", align_corners=False)
    return feature[0]


def _shift(values: Tensor, axis: int, voxels: int) -> Tensor:
    """Values (1, 1, z, y, x) moved along an axis; the border is repeated."""
    length = values.shape[axis]
    index = (torch.arange(length) + voxels).clamp(0, length - 1)
    return values.index_select(axis, index)
