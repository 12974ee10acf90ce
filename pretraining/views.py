"""Views of crops for the proxy tasks: quarter turns, intensities, cut-outs. Drawing is separate from applying.

Every sample draws from a generator of its own, so that a view does not depend on how a batch is divided over processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple

# Drawing ends here even if the share is not reached, as with tiny blocks and a share near 1.
MOST_BLOCKS = 1_000

Masking = Literal["blocks", "cells"]


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn.

    Attributes:
        corrupted_share: share of the voxels that is cut out; the last block may exceed it.
        masking: `blocks` of any size and place, or `cells` of a regular grid (SimMIM, arXiv 2111.09886).
        cell: voxels of a cell along each axis.
        block_share: smallest and largest side of a block, relative to the crop's.
        swap_probability: probability that a block is filled from another crop instead of with noise.
        rotate: whether crops are turned; needs crops whose y and x are equal.
        intensity_probability: of each change of intensity.
        brightness: largest shift, in standard deviations of the normalised intensities.
        contrast: smallest and largest factor around the crop's mean.
        gamma: smallest and largest exponent, applied to the crop's range.
    """

    corrupted_share: float = 0.3
    masking: Masking = "blocks"
    cell: int = 8
    block_share: tuple[float, float] = (0.15, 0.4)
    swap_probability: float = 0.5
    rotate: bool = True
    intensity_probability: float = 0.3
    brightness: float = 0.2
    contrast: tuple[float, float] = (0.75, 1.25)
    gamma: tuple[float, float] = (0.7, 1.5)

    def __post_init__(self) -> None:
        for name in ("corrupted_share", "swap_probability", "intensity_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if self.cell < 1:
            raise ValueError(f"cell is {self.cell}; expected at least 1 voxel")
        for name in ("block_share", "contrast", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {(low, high)}; expected two positive numbers, the smaller first")
        if self.block_share[1] > 1 or self.brightness < 0:
            raise ValueError(f"block_share must be at most 1 and brightness at least 0, found {self}")


@dataclass(frozen=True)
class ViewParameters:
    """Geometry of a view, shared by the modalities of a pair.

    Attributes:
        turns: quarter turns in the (y, x) plane, int64 (B,).
        mask: voxels to cut out after turning, bool (B, 1, z, y, x).
        swapped: those of them that are filled from another crop, bool (B, 1, z, y, x); None for cells of zeros.
    """

    turns: Tensor
    mask: Tensor
    swapped: Tensor | None


@dataclass(frozen=True)
class IntensityParameters:
    """Intensity changes of a view of one modality, each (B,); a neutral value where a change is not made."""

    brightness: Tensor
    contrast: Tensor
    gamma: Tensor


class View(NamedTuple):
    """A view of a batch of crops.

    Attributes:
        corrupted: what the network sees (B, 1, z, y, x).
        target: what it should reconstruct: turned and changed in intensity, nothing cut out (B, 1, z, y, x).
        mask: True where voxels were cut out (B, 1, z, y, x).
        turns: quarter turns of each crop (B,).
    """

    corrupted: Tensor
    target: Tensor
    mask: Tensor
    turns: Tensor


def the_one_before(crops: Tensor) -> Tensor | None:
    """For each crop of a batch (B, ...) the one before it, for the first the last; None for a batch of one."""
    return crops.roll(1, dims=0) if len(crops) > 1 else None


def draw_view(shape: Triple, settings: ViewSettings, generators: Sequence[torch.Generator]) -> ViewParameters:
    """Draws turns and cut-outs, one sample a generator.

    Raises:
        ValueError: when crops (z, y, x) whose y and x differ should be turned.
    """
    if settings.rotate and shape[1] != shape[2]:
        raise ValueError(f"crops of {shape} cannot be turned in their (y, x) plane; y and x must be equal")
    turns, masks, swaps = [], [], []
    for generator in generators:
        turns.append(int(torch.randint(4, (), generator=generator)) if settings.rotate else 0)
        if settings.masking == "cells":
            masks.append(_draw_cells(shape, settings, generator))
            continue
        mask, swapped = _draw_blocks(shape, settings, generator)
        masks.append(mask)
        swaps.append(swapped)
    swapped = torch.stack(swaps)[:, None] if swaps else None
    return ViewParameters(torch.tensor(turns), torch.stack(masks)[:, None], swapped)


def draw_intensity(settings: ViewSettings, generators: Sequence[torch.Generator]) -> IntensityParameters:
    """Draws changes of brightness, contrast and gamma for samples of one modality, one sample a generator."""
    ranges = ((-settings.brightness, settings.brightness, 0.0), (*settings.contrast, 1.0), (*settings.gamma, 1.0))
    rows = []
    for generator in generators:
        values, chances = torch.rand(2, len(ranges), generator=generator).tolist()
        rows.append(
            [
                low + (high - low) * value if chance < settings.intensity_probability else neutral
                for value, chance, (low, high, neutral) in zip(values, chances, ranges, strict=True)
            ]
        )
    return IntensityParameters(*torch.tensor(rows).unbind(1))


def apply_view(
    images: Tensor,
    parameters: ViewParameters,
    intensity: IntensityParameters,
    generators: Sequence[torch.Generator],
    other_crops: Callable[[Tensor], Tensor | None] = the_one_before,
) -> View:
    """Turns crops, changes their intensities and cuts parts out.

    Args:
        images: crops of one modality (B, 1, z, y, x), normalised intensities.
        parameters: geometry, made by :func:`draw_view` for this batch and shape.
        intensity: changes, made by :func:`draw_intensity`.
        generators: of the noise, one a sample.
        other_crops: for crops that are turned and changed, another of the batch for each; None when there is none.

    A block is filled with Gaussian noise of the crop's mean and deviation, or with the same block of another crop of
    the batch; a batch of one has no other crop and gets noise. Cells are filled with 0, the mean of normalised
    intensities: a patch of zeros becomes the embedding's bias, which is SimMIM's learned mask token.
    """
    device = images.device
    turned = torch.stack(
        [torch.rot90(image, int(k), dims=(2, 3)) for image, k in zip(images, parameters.turns, strict=True)]
    )
    target = change_intensity(turned, intensity)
    mask, turns = parameters.mask.to(device), parameters.turns.to(device)
    if parameters.swapped is None:
        return View(target.masked_fill(mask, 0.0), target, mask, turns)
    noise = torch.stack([torch.randn(target.shape[1:], generator=generator) for generator in generators]).to(device)
    mean, deviation = target.mean((1, 2, 3, 4), keepdim=True), target.std((1, 2, 3, 4), keepdim=True)
    filling = mean + deviation * noise
    others = other_crops(target)
    if others is not None:
        filling = torch.where(parameters.swapped.to(device), others, filling)
    return View(torch.where(mask, filling, target), target, mask, turns)


def change_intensity(images: Tensor, intensity: IntensityParameters) -> Tensor:
    """Gamma on each crop's range, then contrast around its mean, then brightness. (B, 1, z, y, x)."""

    def spread(values: Tensor) -> Tensor:
        return values.to(images).reshape(-1, 1, 1, 1, 1)

    low = images.amin((1, 2, 3, 4), keepdim=True)
    extent = (images.amax((1, 2, 3, 4), keepdim=True) - low).clamp_min(1e-6)
    changed = ((images - low) / extent).clamp(0, 1) ** spread(intensity.gamma) * extent + low
    mean = changed.mean((1, 2, 3, 4), keepdim=True)
    return (changed - mean) * spread(intensity.contrast) + mean + spread(intensity.brightness)


def _draw_blocks(shape: Triple, settings: ViewSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(shape, dtype=torch.bool)
    swapped = torch.zeros_like(mask)
    for _ in range(MOST_BLOCKS):
        if mask.float().mean() >= settings.corrupted_share:
            break
        block = _draw_block(shape, settings.block_share, generator)
        mask[block] = True
        # A block on top of another decides for both: each voxel has one filling.
        swapped[block] = bool(torch.rand((), generator=generator) < settings.swap_probability)
    return mask, swapped


def _draw_cells(shape: Triple, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    grid = [-(-size // settings.cell) for size in shape]
    cells = math.prod(grid)
    chosen = torch.zeros(cells, dtype=torch.bool)
    chosen[torch.randperm(cells, generator=generator)[: round(settings.corrupted_share * cells)]] = True
    mask = chosen.reshape(grid)
    for axis, size in enumerate(shape):
        mask = mask.repeat_interleave(settings.cell, axis).narrow(axis, 0, size)
    return mask


def _draw_block(
    shape: Triple, block_share: tuple[float, float], generator: torch.Generator
) -> tuple[slice, slice, slice]:
    low, high = block_share
    slices = []
    for size in shape:
        share = low + (high - low) * torch.rand((), generator=generator).item()
        length = min(max(round(share * size), 1), size)
        start = int(torch.randint(size - length + 1, (), generator=generator))
        slices.append(slice(start, start + length))
    return slices[0], slices[1], slices[2]
