"""The heads of the proxy tasks, which are discarded after pretraining, except the network's own decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.residual_unet import ResEncFUSEUNet
from nnunetv2_swinfuse.architecture.topology import Triple, triple
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from pretraining.losses.inpainting import visible_mean

# Values that one token reconstructs along an axis at most; deeper tokens cover more voxels than this.
MAX_VALUES = 8


class Crops(NamedTuple):
    """What an inpainting head may look at besides the features.

    Attributes:
        images: the crops as the network sees them (B, 1, z, y, x).
        cut_out: which of their voxels were cut out, bool, of the same shape; None: none of them.
        embedding: what the encoder begins with (B, C, z, y, x), as large as the finest features.
    """

    images: Tensor
    cut_out: Tensor | None
    embedding: Tensor


class LinearInpaintingHead(nn.Module):
    """Reconstructs the voxels of each token by a linear layer, as in SimMIM (arXiv 2111.09886), summed over the stages.

    A token sees nothing but its own features: what is cut out has to be inferred by the encoder. The convolutions of
    :class:`PyramidInpaintingHead` infer most of it themselves, also on the features of a random encoder
    (docs/method.md).

    Args:
        channels: channels of the features, finest first.
        strides: voxels of a token of each stage (z, y, x).
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Triple]):
        super().__init__()
        self.values = [triple([min(size, MAX_VALUES) for size in stride]) for stride in strides]
        self.layers = nn.ModuleList(
            nn.Conv3d(c, math.prod(values), 1) for c, values in zip(channels, self.values, strict=True)
        )
        # The first reconstruction is 0, the mean of normalised intensities, instead of noise that has to be unlearned.
        for layer in self.layers:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, crops: Crops, features: Sequence[Tensor]) -> Tensor:
        """Reconstructs the voxels of crops.

        Args:
            crops: ignored; other heads look at them.
            features: maps (B, C, z, y, x), finest first.

        Returns:
            Voxels (B, 1, z, y, x) of the crops.
        """
        voxels = [
            _to_voxels(layer(feature), values)
            for layer, feature, values in zip(self.layers, features, self.values, strict=True)
        ]
        return torch.stack([_repeat(v, voxels[0].shape[2:]) for v in voxels]).sum(0)


class PyramidInpaintingHead(nn.Module):
    """Reconstructs voxels from features of all resolutions: a top-down sum with one convolution per level, upsampled.

    The input includes the embedding besides the features. The features are normalised per token, which removes the
    brightness of a cell; without the embedding the encoder has to carry it at the expense of all other tasks
    (docs/method.md).

    Args:
        embedding_channels: channels of the embedding.
        channels: channels of the features, finest first.
        width: channels inside the head.
        patch_stride: stride of the patch embedding, undone by the last layers; 1 after the stem of a residual encoder.
    """

    def __init__(self, embedding_channels: int, channels: Sequence[int], width: int, patch_stride: Triple):
        super().__init__()
        channels = (embedding_channels + channels[0], *channels[1:])
        self.laterals = nn.ModuleList(nn.Conv3d(c, width, 1) for c in channels)
        # No normalisation: one over the crop would remove the absolute intensities that are to be reconstructed.
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv3d(width, width, 3, padding=1), nn.GELU()) for _ in channels
        )
        # The last convolution smooths the borders of patches, which otherwise show as a grid in the reconstruction.
        self.voxels = nn.Sequential(
            nn.ConvTranspose3d(width, max(width // 2, 1), patch_stride, patch_stride),
            nn.GELU(),
            nn.Conv3d(max(width // 2, 1), 1, 3, padding=1),
        )

    def forward(self, crops: Crops, features: Sequence[Tensor]) -> Tensor:
        """Reconstructs the voxels of crops.

        Args:
            crops: of which the embedding is used.
            features: maps (B, C, z, y, x), finest first.

        Returns:
            Voxels (B, 1, z, y, x) of the crops.
        """
        maps = (torch.cat([crops.embedding, features[0]], 1), *features[1:])
        x: Tensor | None = None
        for feature, lateral, convolution in reversed(list(zip(maps, self.laterals, self.convolutions, strict=True))):
            level = lateral(feature)
            if x is not None:
                level = level + F.interpolate(x, size=level.shape[2:], mode="trilinear", align_corners=False)
            x = convolution(level)
        return self.voxels(x)


class NetworkInpaintingHead(nn.Module):
    """Reconstructs voxels with the segmentation network's own stem, skips and decoder, which are then transferred too.

    Pretraining of the whole network, as nnssl does it for U-Nets (arXiv 2410.23132). The network's norms remove the
    mean and contrast of a crop, so the reconstruction gets those of its visible voxels.

    Args:
        network: of one image channel and one class. Its patch embedding and encoder are removed, and the segmentation
            layers of deep supervision, which have no part in a reconstruction.
    """

    def __init__(self, network: SwinFUSEUNet | ResEncFUSEUNet):
        super().__init__()
        network.apply(network.initialize)
        del network.patch_embed, network.encoder
        network.decoder.seg_layers = network.decoder.seg_layers[-1:]
        self.network = network
        # As in the linear head: the first reconstruction is the mean.
        nn.init.zeros_(network.decoder.seg_layers[-1].weight)
        nn.init.zeros_(network.decoder.seg_layers[-1].bias)

    def forward(self, crops: Crops, features: Sequence[Tensor]) -> Tensor:
        """Reconstructs the voxels of crops.

        Args:
            crops: of which the images are used, and the mean and standard deviation of their visible voxels.
            features: maps (B, C, z, y, x), finest first.

        Returns:
            Voxels (B, 1, z, y, x) of the crops.
        """
        images = crops.images.float()
        cut_out = torch.zeros_like(images, dtype=torch.bool) if crops.cut_out is None else crops.cut_out
        mean = visible_mean(images, cut_out)
        variance = visible_mean((images - mean).square(), cut_out)
        return self.network.decode(crops.images, features) * variance.sqrt() + mean


class RotationHead(nn.Module):
    """Predicts quarter turns from a coarse map of the deepest features, linearly.

    Swin UNETR uses their mean, which has no positions. A head on fine maps needs little of the encoder: from the
    intensities of real crops averaged over 8 x 8 x 8 cells, a small network learned in 50 steps of 64 crops to
    recognise 88 % of the turns of unseen MR crops.

    Args:
        channels: channels of the features, finest first.
    """

    GRID: Triple = (4, 4, 4)

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        inputs = channels[-1] * math.prod(self.GRID)
        # There are thousands of inputs with a variance of about 1. Unscaled, the gradient of the weights was 35 times
        # that of all other losses, so clipping took it for nearly all of the gradient.
        self.scale = inputs**-0.5
        self.classify = nn.Linear(inputs, 4)
        # Random weights would give the encoder random gradients that are larger than those of all other losses.
        nn.init.zeros_(self.classify.weight)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predicts logits (B, 4) from maps (B, C, z, y, x), finest first."""
        return self.classify(F.adaptive_avg_pool3d(features[-1], self.GRID).flatten(1) * self.scale)


def _to_voxels(values: Tensor, cell: Triple) -> Tensor:
    """Arranges the channels (B, z * y * x, Z, Y, X) of each token as its voxels: (B, 1, Z * z, Y * y, X * x)."""
    batch, _, *grid = values.shape
    arranged = values.reshape(batch, *cell, *grid).permute(0, 4, 1, 5, 2, 6, 3)
    return arranged.reshape(batch, 1, *(g * c for g, c in zip(grid, cell, strict=True)))


def _repeat(voxels: Tensor, shape: Sequence[int]) -> Tensor:
    return voxels if voxels.shape[2:] == shape else F.interpolate(voxels, size=tuple(shape), mode="nearest")
