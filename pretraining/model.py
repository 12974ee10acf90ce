"""The network of pretraining: patch embedding and encoder, which are kept, and the heads of the proxy tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.domain_invariance import PairOutput
from nnunetv2_swinfuse.architecture.registry import build_backbone, build_network, plans_architecture
from nnunetv2_swinfuse.architecture.tensor_names import pretrained, pretrained_decoder
from nnunetv2_swinfuse.architecture.topology import Topology, Triple, triple
from pretraining.configuration import Configuration
from pretraining.heads import Crops, LinearInpaintingHead, NetworkInpaintingHead, PyramidInpaintingHead, RotationHead

PROJECTION_FEATURES = 128
# Where the model has the stem, skips and decoder of a segmentation network.
NETWORK_HEAD = "inpainting_head.network."


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


class Level(NamedTuple):
    """Tokens of one level of the encoder: before its stages, or after one of them.

    Attributes:
        tokens: (B, tokens, C) of each modality.
        grid: tokens along each axis (z, y, x).
    """

    tokens: dict[str, Tensor]
    grid: Triple


class Outputs(NamedTuple):
    """Outputs of the model for the crops of one or two modalities.

    Attributes:
        predictions: by modality.
        features: the encoder's maps (B, C, z, y, x) by modality, finest first.
        levels: tokens before and in the encoder's stages. `paired`: outputs of the Domain Invariance Module for crops
            with a partner. `single_image`: for crops without one. `stage_0`, `stage_1`...: the maps in `features`, of
            the crops without a partner, or of all if every crop has one.
        pair: all outputs of the module for crops with a partner; None without such crops.
        change: norm of the module's update of crops with a partner, divided by the norm of its input; None without
            such crops.
    """

    predictions: dict[str, Predictions]
    features: dict[str, list[Tensor]]
    levels: dict[str, Level]
    pair: PairOutput | None
    change: Tensor | None


class PretrainingModel(nn.Module):
    """Patch embedding (or stem), encoder and heads for single-channel CT and MR crops.

    `patch_embed` and `encoder` have the same names and shapes as in the segmentation networks.

    Args:
        configuration: settings of the run.
        network_settings: arguments of the segmentation network that is pretrained as a whole, from the checkpoint or
            the encoder that the run continues; those of new plans by default.
    """

    def __init__(self, configuration: Configuration, network_settings: Mapping[str, Any] | None = None):
        super().__init__()
        topology = self.topology = configuration.topology
        settings = self.settings = configuration.encoder_settings
        self.fusion = configuration.fusion
        self.patch_embed, self.encoder = build_backbone(
            settings, topology, 1, configuration.drop_path_rate, configuration.checkpointing, configuration.spacing
        )
        if self.encoder.domain_invariance is not None:
            self.encoder.domain_invariance.random_shift = configuration.dim_random_shift
        channels = self.encoder.output_channels
        width = settings.feature_size
        self.inpainting_head: nn.Module
        if configuration.inpainting_head == "linear":
            self.inpainting_head = LinearInpaintingHead(channels, token_sizes(topology, len(channels)))
        elif configuration.inpainting_head == "network":
            architecture = plans_architecture(topology.strides, settings, **(network_settings or {}))
            network = build_network(architecture, 1, 1)
            self.inpainting_head = NetworkInpaintingHead(network)
        else:
            self.inpainting_head = PyramidInpaintingHead(width, channels, width, topology.patch_stride)
        self.rotation_head = RotationHead(channels)
        self.projection_head = nn.Sequential(
            nn.Linear(channels[-1], channels[-1]), nn.GELU(), nn.Linear(channels[-1], PROJECTION_FEATURES)
        )
        vectors = configuration.contrastive_loss == "nt_xent" and configuration.loss_weight("contrastive") > 0
        used = {
            self.inpainting_head: configuration.loss_weight("inpainting") > 0,
            self.rotation_head: configuration.loss_weight("rotation") > 0,
            self.projection_head: vectors,
        }
        for head, required in used.items():
            # DistributedDataParallel would wait for the gradients of a head that no loss uses.
            head.requires_grad_(required)
        if configuration.freeze_encoder:
            self.patch_embed.requires_grad_(False)
            self.encoder.requires_grad_(False)

    def forward(
        self,
        images: Mapping[str, Tensor],
        paired_count: int = 0,
        partners: Mapping[str, Tensor] | None = None,
        need_weights: bool = False,
        cut_out: Mapping[str, Tensor] | None = None,
    ) -> Outputs:
        """Predictions for CT and MR crops.

        Args:
            images: crops (B, 1, z, y, x) by modality, `CT` and `MR` or one of them.
            paired_count: number of leading crops that pass the Domain Invariance Module with a partner; the others pass
                it as single images, as in fine-tuning. 0 with one modality.
            partners: by modality, the partners of these crops (paired_count, 1, z, y, x); None where CT and MR are each
                other's partner.
            need_weights: keep the module's attention weights in `pair`.
            cut_out: by modality, the voxels of the crops that were cut out or are padding, bool (B, 1, z, y, x); None:
                none.
        """
        names = list(images)
        crops = len(images[names[0]])
        all_images = torch.cat([*images.values(), *(partners.values() if partners else ())])
        embedding = self.patch_embed(all_images)
        by_modality = dict(zip(names, embedding[: len(names) * crops].chunk(len(names)), strict=True))
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        levels: dict[str, Level] = {}
        pair, change = None, None
        if paired_count:
            ct, mr = by_modality["CT"][:paired_count], by_modality["MR"][:paired_count]
            partner_embedding = embedding[len(names) * crops :].chunk(2) if partners else ()
            pair = self.encoder.mix_pair(ct, mr, need_weights, *partner_embedding)
            with torch.no_grad():
                added = (pair.ct - ct).norm() + (pair.mr - mr).norm()
                change = added / (ct.norm() + mr.norm()).clamp_min(1e-12)
            if self.fusion == "mean":
                pair = pair.averaged()
            parts["CT"].append(pair.ct)
            parts["MR"].append(pair.mr)
            levels["paired"] = Level({"CT": pair.ct_tokens, "MR": pair.mr_tokens}, pair.grid)
        if paired_count < crops:
            single = self.encoder.mix_single(torch.cat([embedded[paired_count:] for embedded in by_modality.values()]))
            for name, feature_map in zip(names, single.map.chunk(len(names)), strict=True):
                parts[name].append(feature_map)
            tokens = dict(zip(names, single.tokens.chunk(len(names)), strict=True))
            levels["single_image"] = Level(tokens, single.grid)
        maps = self.encoder.features(torch.cat([part for chunks in parts.values() for part in chunks]))
        features: dict[str, list[Tensor]] = {name: [] for name in names}
        for stage, joint in enumerate(maps):
            for name, feature_map in zip(names, joint.chunk(len(names)), strict=True):
                features[name].append(feature_map)
            first = paired_count if paired_count < crops else 0
            tokens = {name: features[name][stage][first:].flatten(2).transpose(1, 2) for name in names}
            levels[f"stage_{stage}"] = Level(tokens, triple(joint.shape[2:]))
        joint = Crops(
            all_images[: len(names) * crops],
            torch.cat(list(cut_out.values())) if cut_out else None,
            embedding[: len(names) * crops],
        )
        predictions = dict(zip(names, self._predict(joint, maps, len(names)), strict=True))
        return Outputs(predictions, features, levels, pair, change)

    def _predict(self, crops: Crops, features: Sequence[Tensor], modalities: int) -> list[Predictions]:
        pooled = features[-1].mean((2, 3, 4))
        outputs = (
            self.inpainting_head(crops, features),
            self.rotation_head(features),
            self.projection_head(pooled),
        )
        return [Predictions(*parts) for parts in zip(*(output.chunk(modalities) for output in outputs), strict=True)]

    def encoder_weights(self) -> dict[str, Tensor]:
        """The tensors that are transferred to fine-tuning, by name."""
        return pretrained(self.state_dict())

    def decoder_weights(self) -> dict[str, Tensor]:
        """The tensors after the encoder that are transferred too, by name; none without the network's own decoder."""
        head = self.inpainting_head
        if not isinstance(head, NetworkInpaintingHead):
            return {}
        return pretrained_decoder(dict(head.network.named_parameters()))


def token_sizes(topology: Topology, stages: int) -> list[Triple]:
    """Voxels of a token (z, y, x) of each feature map, finest first."""
    # A Swin encoder's first map has the patch embedding's stride; a residual encoder's is that of its first stage.
    strides = [topology.patch_stride, *topology.stage_strides][-stages:]
    return list(accumulate(strides, lambda size, stride: triple([s * t for s, t in zip(size, stride, strict=True)])))
