"""Random contrasts: the same anatomy as if another scanner or sequence had recorded it.

A smooth random intensity curve, two layers of small random convolutions, and a bias field. The convolutions follow GIN
(Ouyang et al., arXiv 2111.12525); intensity curves that are not monotone turn bright tissue dark, as between CT and MR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.host_copies import send

# The axes of a batch (B, 1, z, y, x) but the first.
VOXELS = (1, 2, 3, 4)
# Knots of the intensity curve, channels of the hidden layer, and coarse voxels of the bias field along each axis.
KNOTS = 6
CHANNELS = 4
FIELD = 3
# Largest logarithm of the bias field.
MAX_BIAS = 0.3
# Voxels are flat if the intensities around them differ by less than this share of the crop's standard deviation.
FLAT = 0.01
# A crop has a background if at least this share of its voxels are flat.
MIN_BACKGROUND = 0.01


class ContrastParameters(NamedTuple):
    """Parameters of the contrasts of a batch.

    Attributes:
        knots: values of the intensity curve at equidistant intensities between the crop's extremes (B, KNOTS).
        first: kernels of the first convolution (B, CHANNELS, 1, 3, 3, 3).
        second: kernels of the second one (B, 1, CHANNELS, 3, 3, 3).
        share: share of the convolved image in the result, the rest being that of the curve (B,).
        field: logarithm of the bias field at coarse voxels (B, 1, FIELD, FIELD, FIELD).
    """

    knots: Tensor
    first: Tensor
    second: Tensor
    share: Tensor
    field: Tensor


def draw_contrast(generators: Sequence[torch.Generator]) -> ContrastParameters:
    """Draws a contrast for one sample per generator."""
    rows = []
    for generator in generators:
        rows.append(
            (
                torch.rand(KNOTS, generator=generator),
                torch.randn(CHANNELS, 1, 3, 3, 3, generator=generator),
                torch.randn(1, CHANNELS, 3, 3, 3, generator=generator),
                torch.rand((), generator=generator),
                MAX_BIAS * (2 * torch.rand(1, FIELD, FIELD, FIELD, generator=generator) - 1),
            )
        )
    return ContrastParameters(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


def apply_contrast(images: Tensor, parameters: ContrastParameters) -> Tensor:
    """Renders crops in other contrasts; each keeps its mean and standard deviation.

    Voxels of the background, such as air or padding, stay equal to each other.

    Args:
        images: (B, 1, z, y, x).
        parameters: from :func:`draw_contrast` for this batch.
    """
    parameters = ContrastParameters(*(send(values, images.device, images.dtype) for values in parameters))
    mean, deviation = images.mean(VOXELS, keepdim=True), images.std(VOXELS, keepdim=True)
    low = images.amin(VOXELS, keepdim=True)
    extent = (images.amax(VOXELS, keepdim=True) - low).clamp_min(1e-6)
    scaled = (images - low) / extent
    background = (background_intensity(images) - low) / extent
    # What differs from the background: the field must not give that a gradient, which would show the crop's position.
    remapped = _curve(scaled, parameters.knots) - _curve(background, parameters.knots)
    convolved = _convolutions(scaled, parameters) - _convolutions(background, parameters)
    share = parameters.share.reshape(-1, 1, 1, 1, 1)
    mixed = (1 - share) * remapped / _deviation(remapped) + share * convolved / _deviation(convolved)
    field = F.interpolate(parameters.field, size=images.shape[2:], mode="trilinear", align_corners=True).exp()
    rendered = mixed * field
    return (rendered - rendered.mean(VOXELS, keepdim=True)) / _deviation(rendered) * deviation + mean


def background_intensity(images: Tensor) -> Tensor:
    """The intensity of each crop's background: (B, 1, 1, 1, 1) for crops (B, 1, z, y, x).

    It is the median of the flat voxels: clipped air of CT, zeros around MR that was normalised in its mask, padding.
    Tissue and noise differ from voxel to voxel. A crop with few flat voxels has none, or noise in its air: there it is
    the minimum.
    """
    highest, lowest = F.max_pool3d(images, 3, 1, 1), -F.max_pool3d(-images, 3, 1, 1)
    flat = highest - lowest <= FLAT * images.std(VOXELS, keepdim=True)
    median = images.masked_fill(~flat, torch.nan).flatten(1).nanmedian(1).values.reshape(-1, 1, 1, 1, 1)
    has_background = flat.to(images.dtype).mean(VOXELS, keepdim=True) >= MIN_BACKGROUND
    return torch.where(has_background, median, images.amin(VOXELS, keepdim=True))


def _curve(scaled: Tensor, knots: Tensor) -> Tensor:
    """Interpolates linearly between the knots; intensities (B, 1, z, y, x) from 0 to 1."""
    position = scaled.clamp(0, 1) * (KNOTS - 1)
    lower = position.floor().clamp_max(KNOTS - 2)
    lower_index = lower.long().flatten(1)
    lower_value, upper_value = knots.gather(1, lower_index), knots.gather(1, lower_index + 1)
    return torch.lerp(lower_value, upper_value, (position - lower).flatten(1)).reshape(scaled.shape)


def _convolutions(scaled: Tensor, parameters: ContrastParameters) -> Tensor:
    return _convolve(F.leaky_relu(_convolve(scaled, parameters.first)), parameters.second)


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolves each image (B, C, z, y, x) with its own kernels (B, D, C, 3, 3, 3), edges repeated."""
    batch, channels = images.shape[:2]
    padded = F.pad(images, (1,) * 6, mode="replicate").reshape(1, batch * channels, *(s + 2 for s in images.shape[2:]))
    result = F.conv3d(padded, kernels.flatten(0, 1), groups=batch)
    return result.reshape(batch, -1, *images.shape[2:])


def _deviation(images: Tensor) -> Tensor:
    return images.std(VOXELS, keepdim=True).clamp_min(1e-6)
