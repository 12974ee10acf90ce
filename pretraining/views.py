"""Views of crops for the proxy tasks: quarter turns, intensity changes, cut-outs. Drawing is separate from applying.

Every sample has its own generator, so that a view does not depend on how a batch is divided over processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple
from nnunetv2_swinfuse.host_copies import send
from nnunetv2_swinfuse.random_contrast import ContrastParameters, apply_contrast
from pretraining.mask_cells import cells_along_axes, cells_to_cut_out

# Drawing stops here even if the share is not reached, as with tiny blocks and a share near 1.
MAX_BLOCKS = 1_000

Masking = Literal["blocks", "cells"]


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn.

    Attributes:
        corrupted_share: share of the voxels to cut out; the last block may exceed it.
        masking: `blocks` of random size and position, or `cells` of a regular grid (SimMIM, arXiv 2111.09886).
        cell: voxels of a cell (z, y, x).
        block_share: smallest and largest side of a block, relative to the crop's.
        swap_probability: probability that a block is filled from another crop instead of with noise.
        rotate: whether crops are turned by quarters; requires crops with equal y and x.
        intensity_probability: probability of each intensity change.
        brightness: largest shift, in standard deviations of the normalised intensities.
        contrast: smallest and largest factor of the deviation from the crop's mean.
        gamma: smallest and largest exponent, applied to intensities scaled to [0, 1].
    """

    corrupted_share: float = 0.3
    masking: Masking = "blocks"
    cell: Triple = (8, 8, 8)
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
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1")
        if min(self.cell) < 1:
            raise ValueError(f"cell is {self.cell}; expected at least 1 voxel along each axis")
        for name in ("block_share", "contrast", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {(low, high)}; expected two positive numbers, the smaller first")
        if self.block_share[1] > 1 or self.brightness < 0:
            raise ValueError(f"expected block_share of at most 1 and brightness of at least 0, found {self}")


@dataclass(frozen=True)
class ViewParameters:
    """Geometry of a view.

    Attributes:
        turns: quarter turns in the (y, x) plane, int64 (B,).
        mask: voxels to cut out after turning, bool (B, 1, z, y, x).
        swapped: voxels of the mask to fill from another crop, bool (B, 1, z, y, x); None to fill the mask with zeros.
    """

    turns: Tensor
    mask: Tensor
    swapped: Tensor | None


@dataclass(frozen=True)
class IntensityParameters:
    """Intensity changes of a view of one modality, each (B,); samples without a change have its neutral value."""

    brightness: Tensor
    contrast: Tensor
    gamma: Tensor


class View(NamedTuple):
    """A view of a batch of crops.

    Attributes:
        corrupted: input of the network (B, 1, z, y, x).
        target: what it should reconstruct: turned and with changed intensities, not cut out (B, 1, z, y, x).
        mask: True where voxels were cut out (B, 1, z, y, x).
        turns: quarter turns of each crop (B,), on the CPU.
        inside: True where the view shows the volume, False where it shows padding (B, 1, z, y, x).
        unrendered: the target before it was rendered in a random contrast, for telling tissue from background
            (B, 1, z, y, x).
    """

    corrupted: Tensor
    target: Tensor
    mask: Tensor
    turns: Tensor
    inside: Tensor
    unrendered: Tensor

    @property
    def hidden(self) -> Tensor:
        """True where the network sees nothing of the volume: cut-outs and padding (B, 1, z, y, x)."""
        return self.mask | ~self.inside


def previous_crop(crops: Tensor) -> Tensor | None:
    """For each crop of a batch (B, ...) the previous one, for the first the last; None for a batch of one."""
    return crops.roll(1, dims=0) if len(crops) > 1 else None


def draw_view(shape: Triple, settings: ViewSettings, generators: Sequence[torch.Generator]) -> ViewParameters:
    """Draws turns and cut-outs for one sample per generator.

    Args:
        shape: shape of the crops (z, y, x).
        settings: how to draw.
        generators: one per sample.

    Raises:
        ValueError: when crops are to be turned but their y and x differ.
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
    """Draws changes of brightness, contrast and gamma of one modality for one sample per generator."""
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
    other_crops: Callable[[Tensor], Tensor | None] = previous_crop,
    contrast: ContrastParameters | None = None,
    rendered: Tensor | None = None,
    inside: Tensor | None = None,
) -> View:
    """Turns crops, changes their intensities and cuts parts out.

    A block is filled with Gaussian noise of the crop's mean and standard deviation, or with the same block of another
    crop of the batch; in a batch of one it is always noise. Cells are filled with 0, the mean of normalised
    intensities: the embedding of a patch of zeros is its bias, which takes the role of SimMIM's learned mask token.

    Args:
        images: crops of one modality (B, 1, z, y, x), normalised intensities.
        parameters: geometry, from :func:`draw_view` for this batch and shape.
        intensity: changes, from :func:`draw_intensity`.
        generators: generators of the noise, one per sample.
        other_crops: returns another crop of the batch for each crop, or None if there is no other.
        contrast: random contrasts to render crops in, from :func:`draw_contrast`.
        rendered: which crops to render in their contrast, bool (B,); none when None.
        inside: part of each crop that is no padding, int64 (B, 3, 2): first voxel, and the one after the last, along z,
            y, x; None: no padding.
    """
    device = images.device
    target = unrendered = change_intensity(_turn(images, parameters.turns), intensity)
    if inside is None:
        shown = torch.ones_like(target, dtype=torch.bool)
    else:
        shown = _turn(_within(send(inside, device), images.shape[2:]), parameters.turns)
    if contrast is not None and rendered is not None:
        target = torch.where(send(rendered, device).reshape(-1, 1, 1, 1, 1), apply_contrast(target, contrast), target)
    mask, turns = send(parameters.mask, device), parameters.turns
    if parameters.swapped is None:
        return View(target.masked_fill(mask, 0.0), target, mask, turns, shown, unrendered)
    drawn = torch.stack([torch.randn(target.shape[1:], generator=generator) for generator in generators])
    mean, deviation = target.mean((1, 2, 3, 4), keepdim=True), target.std((1, 2, 3, 4), keepdim=True)
    filling = mean + deviation * send(drawn, device)
    others = other_crops(target)
    if others is not None:
        filling = torch.where(send(parameters.swapped, device), others, filling)
    return View(torch.where(mask, filling, target), target, mask, turns, shown, unrendered)


def change_intensity(images: Tensor, intensity: IntensityParameters) -> Tensor:
    """Applies gamma to each crop's range, then contrast around its mean, then brightness; images (B, 1, z, y, x)."""

    def per_sample(values: Tensor) -> Tensor:
        return send(values, images.device, images.dtype).reshape(-1, 1, 1, 1, 1)

    low = images.amin((1, 2, 3, 4), keepdim=True)
    extent = (images.amax((1, 2, 3, 4), keepdim=True) - low).clamp_min(1e-6)
    changed = ((images - low) / extent).clamp(0, 1) ** per_sample(intensity.gamma) * extent + low
    mean = changed.mean((1, 2, 3, 4), keepdim=True)
    return (changed - mean) * per_sample(intensity.contrast) + mean + per_sample(intensity.brightness)


def _turn(images: Tensor, turns: Tensor) -> Tensor:
    return torch.stack([torch.rot90(image, int(k), dims=(2, 3)) for image, k in zip(images, turns, strict=True)])


def _within(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """True inside of boxes (B, 3, 2): bool (B, 1, z, y, x)."""
    places = [torch.arange(size, device=boxes.device) for size in shape]
    z, y, x = ((boxes[:, axis, :1] <= p) & (p < boxes[:, axis, 1:]) for axis, p in enumerate(places))
    return (z[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :])[:, None]


def _draw_blocks(shape: Triple, settings: ViewSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(shape, dtype=torch.bool)
    swapped = torch.zeros_like(mask)
    for _ in range(MAX_BLOCKS):
        if mask.float().mean() >= settings.corrupted_share:
            break
        block = _draw_block(shape, settings.block_share, generator)
        mask[block] = True
        # Where blocks overlap, the last one decides how the voxels are filled.
        swapped[block] = bool(torch.rand((), generator=generator) < settings.swap_probability)
    return mask, swapped


def _draw_cells(shape: Triple, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    grid = cells_along_axes(shape, settings.cell)
    cells = math.prod(grid)
    chosen = torch.zeros(cells, dtype=torch.bool)
    chosen[torch.randperm(cells, generator=generator)[: cells_to_cut_out(settings.corrupted_share, grid)]] = True
    mask = chosen.reshape(grid)
    for axis, (size, cell) in enumerate(zip(shape, settings.cell, strict=True)):
        mask = mask.repeat_interleave(cell, axis).narrow(axis, 0, size)
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
