"""Views of crops for the proxy tasks: quarter turns, intensities, cut-outs. Drawing is separate from applying."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple

# Drawing ends here even if the share is not reached, as with tiny blocks and a share near 1.
MOST_BLOCKS = 1_000


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn.

    Attributes:
        corrupted_share: share of the voxels that is cut out; the last block may exceed it.
        block_share: smallest and largest side of a block, relative to the crop's.
        swap_probability: probability that a block is filled from another crop instead of with noise.
        rotate: whether crops are turned; needs crops whose y and x are equal.
        intensity_probability: of each change of intensity.
        brightness: largest shift, in standard deviations of the normalised intensities.
        contrast: smallest and largest factor around the crop's mean.
        gamma: smallest and largest exponent, applied to the crop's range.
    """

    corrupted_share: float = 0.3
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
        swapped: those of them that are filled from another crop, bool (B, 1, z, y, x).
    """

    turns: Tensor
    mask: Tensor
    swapped: Tensor


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


def draw_view(batch: int, shape: Triple, settings: ViewSettings, generator: torch.Generator) -> ViewParameters:
    """Draws turns and cut-outs for a batch.

    Raises:
        ValueError: when crops (z, y, x) whose y and x differ should be turned.
    """
    if settings.rotate and shape[1] != shape[2]:
        raise ValueError(f"crops of {shape} cannot be turned in their (y, x) plane; y and x must be equal")
    turns = torch.zeros(batch, dtype=torch.int64)
    if settings.rotate:
        turns = torch.randint(4, (batch,), generator=generator)
    mask = torch.zeros(batch, 1, *shape, dtype=torch.bool)
    swapped = torch.zeros_like(mask)
    for sample in range(batch):
        for _ in range(MOST_BLOCKS):
            if mask[sample].float().mean() >= settings.corrupted_share:
                break
            block = (sample, 0, *_draw_block(shape, settings.block_share, generator))
            mask[block] = True
            # A block on top of another decides for both: each voxel has one filling.
            swapped[block] = bool(torch.rand((), generator=generator) < settings.swap_probability)
    return ViewParameters(turns, mask, swapped)


def draw_intensity(batch: int, settings: ViewSettings, generator: torch.Generator) -> IntensityParameters:
    """Draws changes of brightness, contrast and gamma for a batch of one modality."""

    def draw(low: float, high: float, neutral: float) -> Tensor:
        values = low + (high - low) * torch.rand(batch, generator=generator)
        applied = torch.rand(batch, generator=generator) < settings.intensity_probability
        return torch.where(applied, values, torch.full_like(values, neutral))

    return IntensityParameters(
        brightness=draw(-settings.brightness, settings.brightness, 0.0),
        contrast=draw(*settings.contrast, 1.0),
        gamma=draw(*settings.gamma, 1.0),
    )


def apply_view(
    images: Tensor, parameters: ViewParameters, intensity: IntensityParameters, generator: torch.Generator
) -> View:
    """Turns crops, changes their intensities and cuts blocks out.

    Args:
        images: crops of one modality (B, 1, z, y, x), normalised intensities.
        parameters: geometry, made by :func:`draw_view` for this batch and shape.
        intensity: changes, made by :func:`draw_intensity`.
        generator: of the noise.

    A block is filled with Gaussian noise of the crop's mean and deviation, or with the same block of another crop of
    the batch; a batch of one has no other crop and gets noise.
    """
    device = images.device
    turned = torch.stack(
        [torch.rot90(image, int(k), dims=(2, 3)) for image, k in zip(images, parameters.turns, strict=True)]
    )
    target = change_intensity(turned, intensity)
    mask, swapped = parameters.mask.to(device), parameters.swapped.to(device)
    if len(images) == 1:
        swapped = torch.zeros_like(swapped)
    noise = torch.randn(target.shape, generator=generator).to(device)
    mean, deviation = target.mean((1, 2, 3, 4), keepdim=True), target.std((1, 2, 3, 4), keepdim=True)
    filling = torch.where(swapped, target.roll(1, dims=0), mean + deviation * noise)
    return View(torch.where(mask, filling, target), target, mask, parameters.turns.to(device))


def change_intensity(images: Tensor, intensity: IntensityParameters) -> Tensor:
    """Gamma on each crop's range, then contrast around its mean, then brightness. (B, 1, z, y, x)."""

    def spread(values: Tensor) -> Tensor:
        return values.to(images).reshape(-1, 1, 1, 1, 1)

    low = images.amin((1, 2, 3, 4), keepdim=True)
    extent = (images.amax((1, 2, 3, 4), keepdim=True) - low).clamp_min(1e-6)
    changed = ((images - low) / extent).clamp(0, 1) ** spread(intensity.gamma) * extent + low
    mean = changed.mean((1, 2, 3, 4), keepdim=True)
    return (changed - mean) * spread(intensity.contrast) + mean + spread(intensity.brightness)


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
