"""The network of pretraining: patch embedding and encoder, which are kept, and the heads of the proxy tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.encoder import PairFeatures
from nnunetv2_swinfuse.architecture.registry import build_backbone
from nnunetv2_swinfuse.architecture.tensor_names import pretrained
from nnunetv2_swinfuse.architecture.topology import Triple
from pretraining.configuration import Configuration

PROJECTION_FEATURES = 128
# Channels of the rotation head's map.
ROTATION_FEATURES = 8


class InpaintingHead(nn.Module):
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

    def forward(self, embedding: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Reconstructs the voxels of crops.

        Args:
            embedding: (B, C, z, y, x), as large as the finest features.
            features: maps (B, C, z, y, x), finest first.

        Returns:
            Voxels (B, 1, z, y, x) of the crops.
        """
        maps = (torch.cat([embedding, features[0]], 1), *features[1:])
        x: Tensor | None = None
        for feature, lateral, convolution in reversed(list(zip(maps, self.laterals, self.convolutions, strict=True))):
            level = lateral(feature)
            if x is not None:
                level = level + F.interpolate(x, size=level.shape[2:], mode="trilinear", align_corners=False)
            x = convolution(level)
        return self.voxels(x)


class RotationHead(nn.Module):
    """Predicts quarter turns from a coarse map of the features of all resolutions.

    Swin UNETR uses the mean over the deepest map, which has no positions. How much these matter: from the intensities
    of real crops averaged over 8 x 8 x 8 cells, a small network learnt in 50 steps of 64 crops to recognise 88 % of
    the turns of unseen MR crops and 36 % of CT crops; from 2 x 4 x 4 cells, 59 % and 29 %.

    Args:
        channels: channels of the features, finest first.
    """

    GRID: Triple = (8, 8, 8)

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv3d(c, ROTATION_FEATURES, 1) for c in channels)
        self.classify = nn.Linear(ROTATION_FEATURES * math.prod(self.GRID), 4)
        # Random weights would give the encoder random gradients that are larger than those of all other losses.
        nn.init.zeros_(self.classify.weight)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predicts logits (B, 4) from maps (B, C, z, y, x), finest first."""
        cells = [
            lateral(F.adaptive_avg_pool3d(feature, self.GRID))
            for feature, lateral in zip(features, self.laterals, strict=True)
        ]
        return self.classify(F.gelu(torch.stack(cells).sum(0)).flatten(1))


class Predictions(NamedTuple):
    """Outputs of the heads for one modality.

    Attributes:
        reconstruction: voxels (B, 1, z, y, x).
        turns: logits of the four rotations (B, 4).
        projection: vectors for the contrastive loss (B, PROJECTION_FEATURES).
    """

    reconstruction: Tensor
    turns: Tensor
    projection: Tensor


class PretrainingModel(nn.Module):
    """Patch embedding (or stem), encoder and heads for single-channel CT and MR crops.

    `patch_embed` and `encoder` have the same names and shapes as in the segmentation networks.
    """

    def __init__(self, configuration: Configuration):
        super().__init__()
        topology = self.topology = configuration.topology
        settings = self.settings = configuration.encoder_settings
        self.fusion = configuration.fusion
        self.patch_embed, self.encoder = build_backbone(
            settings, topology, 1, configuration.drop_path_rate, configuration.checkpointing, configuration.spacing
        )
        channels = self.encoder.output_channels
        width = settings.feature_size
        self.inpainting_head = InpaintingHead(width, channels, width, topology.patch_stride)
        self.rotation_head = RotationHead(channels)
        self.projection_head = nn.Sequential(
            nn.Linear(channels[-1], channels[-1]), nn.GELU(), nn.Linear(channels[-1], PROJECTION_FEATURES)
        )
        heads = {
            "inpainting": self.inpainting_head, "rotation": self.rotation_head, "contrastive": self.projection_head
        }  # fmt: skip
        for loss, head in heads.items():
            # DistributedDataParallel would wait for the gradients of a head that no loss uses.
            head.requires_grad_(configuration.loss_weight(loss) > 0)

    def forward(
        self, ct: Tensor | None, mr: Tensor | None, single_image: bool = False, need_weights: bool = False
    ) -> tuple[Predictions | None, Predictions | None, PairFeatures | None]:
        """Predictions for CT and MR crops.

        Args:
            ct, mr: (B, 1, z, y, x) each; one is None in a run with one modality, whose images are passed singly.
            single_image: pass each image through the Domain Invariance Module without the other, as in fine-tuning.
            need_weights: keep the module's attention weights in the features of the pair.

        Returns:
            Predictions for CT, predictions for MR, and the features of the pair; None where there are none.
        """
        images = [image for image in (ct, mr) if image is not None]
        embedding = self.patch_embed(torch.cat(images))
        batch = len(images[0])
        if ct is None or mr is None:
            (predictions,) = self._predict(embedding, self.encoder(embedding), 1)
            return (predictions, None, None) if mr is None else (None, predictions, None)
        pair = None
        if single_image:
            features = self.encoder(embedding)
        else:
            pair = self.encoder.forward_pair(embedding[:batch], embedding[batch:], self.fusion, need_weights)
            features = [torch.cat(maps) for maps in zip(pair.ct, pair.mr, strict=True)]
        of_ct, of_mr = self._predict(embedding, features, 2)
        return of_ct, of_mr, pair

    def _predict(self, embedding: Tensor, features: Sequence[Tensor], modalities: int) -> list[Predictions]:
        pooled = features[-1].mean((2, 3, 4))
        outputs = (
            self.inpainting_head(embedding, features),
            self.rotation_head(features),
            self.projection_head(pooled),
        )
        return [Predictions(*parts) for parts in zip(*(output.chunk(modalities) for output in outputs), strict=True)]

    def encoder_weights(self) -> dict[str, Tensor]:
        """The tensors that are transferred to fine-tuning, by name."""
        return pretrained(self.state_dict())
