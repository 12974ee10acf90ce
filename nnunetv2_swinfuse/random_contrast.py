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

# Knots of the intensity curve, channels of the hidden layer, and coarse voxels of the bias field along each axis.
KNOTS = 6
CHANNELS = 4
FIELD = 3
# Largest logarithm of the bias field.
MAX_BIAS = 0.3


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

    Voxels that are equal to the crop's minimum together with their neighbourhood, such as air, stay equal to each
    other.

    Args:
        images: (B, 1, z, y, x).
        parameters: from :func:`draw_contrast` for this batch.
    """
    parameters = ContrastParameters(*(send(values, images.device, images.dtype) for values in parameters))
    mean, deviation = images.mean((1, 2, 3, 4), keepdim=True), images.std((1, 2, 3, 4), keepdim=True)
    low = images.amin((1, 2, 3, 4), keepdim=True)
    scaled = (images - low) / (images.amax((1, 2, 3, 4), keepdim=True) - low).clamp_min(1e-6)
    remapped = _curve(scaled, parameters.knots)
    convolved = _convolve(F.leaky_relu(_convolve(scaled, parameters.first)), parameters.second)
    share = parameters.share.reshape(-1, 1, 1, 1, 1)
    mixed = (1 - share) * _standardised(remapped) + share * _standardised(convolved)
    # The field multiplies what differs from the air, which must not get a gradient that shows the crop's position.
    air = mixed.flatten(1).gather(1, images.flatten(1).argmin(1, keepdim=True)).reshape(-1, 1, 1, 1, 1)
    field = F.interpolate(parameters.field, size=images.shape[2:], mode="trilinear", align_corners=True).exp()
    return _standardised((mixed - air) * field) * deviation + mean


def _curve(scaled: Tensor, knots: Tensor) -> Tensor:
    """Interpolates linearly between the knots; intensities (B, 1, z, y, x) from 0 to 1."""
    position = scaled.clamp(0, 1) * (KNOTS - 1)
    lower = position.floor().clamp_max(KNOTS - 2)
    lower_index = lower.long().flatten(1)
    lower_value, upper_value = knots.gather(1, lower_index), knots.gather(1, lower_index + 1)
    return torch.lerp(lower_value, upper_value, (position - lower).flatten(1)).reshape(scaled.shape)


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolves each image (B, C, z, y, x) with its own kernels (B, D, C, 3, 3, 3), edges repeated."""
    batch, channels = images.shape[:2]
    padded = F.pad(images, (1,) * 6, mode="replicate").reshape(1, batch * channels, *(s + 2 for s in images.shape[2:]))
    result = F.conv3d(padded, kernels.flatten(0, 1), groups=batch)
    return result.reshape(batch, -1, *images.shape[2:])


def _standardised(images: Tensor) -> Tensor:
    mean, deviation = images.mean((1, 2, 3, 4), keepdim=True), images.std((1, 2, 3, 4), keepdim=True)
    return (images - mean) / deviation.clamp_min(1e-6)
