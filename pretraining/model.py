"""What is trained in pretraining: patch embedding and encoder, which are kept, and the heads of the proxy tasks."""

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
# Channels of each cell that the rotation head reads.
TURN_FEATURES = 8


class InpaintingHead(nn.Module):
    """Features of all resolutions to voxels: a top-down sum with one convolution a level, then a step to full size.

    It sees the embedding beside the finest features. Those are normalised token by token, which takes away how bright a
    cell is and leaves the encoder to carry it in another way, at the cost of all other tasks (docs/method.md).

    Args:
        embedded: channels of the embedding.
        channels: channels of the features, finest first.
        width: channels inside the head.
        patch_stride: stride of the patch embedding, undone by the last step; 1 behind the stem of a residual encoder.
    """

    def __init__(self, embedded: int, channels: Sequence[int], width: int, patch_stride: Triple):
        super().__init__()
        channels = (embedded + channels[0], *channels[1:])
        self.laterals = nn.ModuleList(nn.Conv3d(c, width, 1) for c in channels)
        # No normalisation: one over the crop would take away the absolute intensities that are to be restored.
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv3d(width, width, 3, padding=1), nn.GELU()) for _ in channels
        )
        # The last convolution joins the cells of the patch embedding, which otherwise show as a grid in the picture.
        self.voxels = nn.Sequential(
            nn.ConvTranspose3d(width, max(width // 2, 1), patch_stride, patch_stride),
            nn.GELU(),
            nn.Conv3d(max(width // 2, 1), 1, 3, padding=1),
        )

    def forward(self, embedding: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Embedding and maps (B, C, z, y, x), finest first and as large, to voxels (B, 1, z, y, x) of the crop."""
        maps = (torch.cat([embedding, features[0]], 1), *features[1:])
        x: Tensor | None = None
        for feature, lateral, convolution in reversed(list(zip(maps, self.laterals, self.convolutions, strict=True))):
            level = lateral(feature)
            if x is not None:
                level = level + F.interpolate(x, size=level.shape[2:], mode="trilinear", align_corners=False)
            x = convolution(level)
        return self.voxels(x)


class RotationHead(nn.Module):
    """Quarter turns from a coarse map of the features of all resolutions.

    The mean over the deepest map, as in Swin UNETR, does not say where anything is. How much that matters: from the
    mere intensities of real crops, averaged over 8 x 8 x 8 cells, a small network learnt the turns of unseen MR crops
    to 88 % and of CT crops to 36 % in 50 steps of 64; from 2 x 4 x 4 cells to 59 % and 29 %.

    Args:
        channels: channels of the features, finest first.
    """

    GRID: Triple = (8, 8, 8)

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv3d(c, TURN_FEATURES, 1) for c in channels)
        self.classify = nn.Linear(TURN_FEATURES * math.prod(self.GRID), 4)
        # With random weights the encoder would get gradients that differ with every batch, larger than all others.
        nn.init.zeros_(self.classify.weight)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, z, y, x), finest first, to logits (B, 4)."""
        cells = [
            lateral(F.adaptive_avg_pool3d(feature, self.GRID))
            for feature, lateral in zip(features, self.laterals, strict=True)
        ]
        return self.classify(F.gelu(torch.stack(cells).sum(0)).flatten(1))


class Predictions(NamedTuple):
    """What the heads make of one modality's features.

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

    `patch_embed` and `encoder` have the names and shapes they have in the segmentation networks.
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
            # Processes that train together would wait for the gradients of a head that no loss uses.
            head.requires_grad_(configuration.loss_weight(loss) > 0)

    def forward(
        self, ct: Tensor | None, mr: Tensor | None, alone: bool = False, need_weights: bool = False
    ) -> tuple[Predictions | None, Predictions | None, PairFeatures | None]:
        """Predictions for CT and MR crops.

        Args:
            ct, mr: (B, 1, z, y, x) each; None where a run has one modality, whose images then go alone.
            alone: every image goes through the Domain Invariance Module by itself, as in fine-tuning.
            need_weights: keep the module's attention weights in the features.

        Returns:
            Predictions of CT, predictions of MR, and the features of the pair, None when `alone`.
        """
        images = [image for image in (ct, mr) if image is not None]
        embedding = self.patch_embed(torch.cat(images))
        batch = len(images[0])
        if ct is None or mr is None:
            (predictions,) = self._predict(embedding, self.encoder(embedding), 1)
            return (predictions, None, None) if mr is None else (None, predictions, None)
        pair = None
        if alone:
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
        """The tensors that fine-tuning takes over."""
        return pretrained(self.state_dict())
