"""The Domain Invariance Module (SwinFUSE, arXiv 2405.12781): what CT and MR both show, found by co-attention.

Two parallel blocks of multi-head attention layers. The queries of the CT block attend to the MR tokens' keys and
values, those of the MR block to the CT tokens' keys and values. With one image only, as in all of fine-tuning and
inference, both blocks are given that image and their outputs are averaged.

Differs from the released code: tokens are average-pooled to a bounded number, so that any patch size can be paid for;
they carry their position; layers are pre-norm with residuals and a feed-forward network; attention runs over tokens,
never over the batch; and the result is added to the full-resolution embedding.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.swin import FeedForward
from nnunetv2_swinfuse.architecture.topology import Triple, pooling_factors


@dataclass(frozen=True)
class DomainInvarianceSettings:
    """Sizes of the module.

    Attributes:
        layers: attention layers of each block (the paper's 4).
        max_tokens: tokens attended over at most; larger maps are average-pooled.
        mlp_ratio: hidden channels of the feed-forward networks, relative to the embedding's.
    """

    layers: int = 4
    max_tokens: int = 2048
    mlp_ratio: float = 2.0

    def __post_init__(self) -> None:
        if self.layers < 1 or self.max_tokens < 1 or self.mlp_ratio <= 0:
            raise ValueError(f"domain_invariance: layers, max_tokens and mlp_ratio must be positive, found {self}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def position_encoding(grid: Triple, cell: Triple, channels: int, device: torch.device) -> Tensor:
    """Sines and cosines of the cell centres, for any grid (after Vaswani et al., arXiv 1706.03762, in 3D).

    Args:
        grid: cells per axis (z, y, x).
        cell: size of a cell per axis, in tokens of the unpooled map, so that pooling does not move positions.
        channels: channels of the tokens; those that do not divide into six are left at zero.

    Returns:
        float32 (prod(grid), channels).
    """
    frequencies = channels // 6
    encoding = torch.zeros(*grid, channels, device=device)
    if frequencies:
        # Wavelengths from 4 to about 400 tokens: neighbours differ, and no crop wraps around.
        steps = torch.arange(frequencies, device=device) / max(frequencies, 2)
        rates = 2 * math.pi / 4 * 100.0**-steps
        for axis in range(3):
            centre = (torch.arange(grid[axis], device=device) + 0.5) * cell[axis]
            angles = centre[:, None] * rates
            view = [1, 1, 1, frequencies]
            view[axis] = grid[axis]
            first = 2 * axis * frequencies
            encoding[..., first : first + frequencies] = angles.sin().reshape(view)
            encoding[..., first + frequencies : first + 2 * frequencies] = angles.cos().reshape(view)
    return encoding.reshape(-1, channels)


class CoAttentionLayer(nn.Module):
    """Queries of one token set, keys and values of another; residual feed-forward network behind.

    Both sets are (B, tokens, C) and may differ in length.
    """

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(channels)
        self.norm_context = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(
        self, tokens: Tensor, context: Tensor, positions: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the new tokens (B, tokens, C) and, if asked for, attention weights (B, heads, tokens, context)."""
        query_input, context = self.norm_query(tokens), self.norm_context(context)
        key_input = context
        if positions is not None:
            query_input = query_input + positions
            key_input = context + positions
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.query, query_input), (self.key, key_input), (self.value, context))
        )
        weights = None
        if need_weights:
            weights = ((query @ key.transpose(-2, -1)) / math.sqrt(query.shape[-1])).softmax(-1)
            attended = weights @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm_mlp(tokens)), weights


class CoAttentionBlock(nn.Module):
    """Layers of co-attention: the tokens are refined, the context (the other modality's tokens) stays."""

    def __init__(self, channels: int, num_heads: int, settings: DomainInvarianceSettings):
        super().__init__()
        self.layers = nn.ModuleList(
            CoAttentionLayer(channels, num_heads, settings.mlp_ratio) for _ in range(settings.layers)
        )

    def forward(
        self, tokens: Tensor, context: Tensor, positions: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        all_weights = []
        for layer in self.layers:
            tokens, weights = layer(tokens, context, positions, need_weights)
            if weights is not None:
                all_weights.append(weights)
        return tokens, all_weights


class Fused(NamedTuple):
    """What the module makes of a CT and an MR map.

    Attributes:
        ct, mr: the maps with what the other modality confirms added (B, C, z, y, x).
        ct_tokens, mr_tokens: outputs of the two blocks (B, tokens, C), the samples for density matching.
        grid: how the tokens lie in space (z, y, x); its product is their number.
        ct_weights, mr_weights: attention weights of each layer, empty unless asked for.
    """

    ct: Tensor
    mr: Tensor
    ct_tokens: Tensor
    mr_tokens: Tensor
    grid: Triple
    ct_weights: list[Tensor]
    mr_weights: list[Tensor]


class DomainInvariance(nn.Module):
    """Two parallel co-attention blocks over pooled tokens, added to the full-resolution map.

    Args:
        channels: channels of the embedding, a multiple of `num_heads`.
        num_heads: attention heads of each layer.
        settings: sizes of the blocks.
    """

    def __init__(self, channels: int, num_heads: int, settings: DomainInvarianceSettings):
        super().__init__()
        self.settings = settings
        self.ct_block = CoAttentionBlock(channels, num_heads, settings)
        self.mr_block = CoAttentionBlock(channels, num_heads, settings)
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, channels)
        self.apply(_initialize_linear)

    def forward(self, embedding: Tensor) -> Tensor:
        """Single image of either modality: both blocks attend to it, their outputs are averaged. (B, C, z, y, x)."""
        tokens, positions, grid = self.pool(embedding)
        ct_tokens, _ = self.ct_block(tokens, tokens, positions)
        mr_tokens, _ = self.mr_block(tokens, tokens, positions)
        return self._add(embedding, (ct_tokens + mr_tokens) / 2, grid)

    def forward_pair(self, ct: Tensor, mr: Tensor, need_weights: bool = False) -> Fused:
        """A CT and an MR map of the same size (B, C, z, y, x), each attending to the other."""
        if ct.shape != mr.shape:
            raise ValueError(f"CT and MR maps must have the same shape, found {tuple(ct.shape)} and {tuple(mr.shape)}")
        ct_pooled, positions, grid = self.pool(ct)
        mr_pooled, _, _ = self.pool(mr)
        ct_tokens, ct_weights = self.ct_block(ct_pooled, mr_pooled, positions, need_weights)
        mr_tokens, mr_weights = self.mr_block(mr_pooled, ct_pooled, positions, need_weights)
        return Fused(
            self._add(ct, ct_tokens, grid),
            self._add(mr, mr_tokens, grid),
            ct_tokens,
            mr_tokens,
            grid,
            ct_weights,
            mr_weights,
        )

    def pool(self, embedding: Tensor) -> tuple[Tensor, Tensor, Triple]:
        """(B, C, z, y, x) to tokens (B, N, C) with N at most `max_tokens`, their positions (N, C) and their grid."""
        depth, height, width = embedding.shape[2:]
        factors = pooling_factors((depth, height, width), self.settings.max_tokens)
        if max(factors) > 1:
            # Cells at the far border average what lies inside the map.
            embedding = F.avg_pool3d(embedding, factors, factors, ceil_mode=True, count_include_pad=False)
        grid = (embedding.shape[2], embedding.shape[3], embedding.shape[4])
        positions = position_encoding(grid, factors, embedding.shape[1], embedding.device)
        return embedding.flatten(2).transpose(1, 2), positions.to(embedding.dtype), grid

    def _add(self, embedding: Tensor, tokens: Tensor, grid: Triple) -> Tensor:
        update = self.proj(self.norm(tokens)).transpose(1, 2).unflatten(2, grid)
        if update.shape[2:] != embedding.shape[2:]:
            update = F.interpolate(update, size=embedding.shape[2:], mode="trilinear", align_corners=False)
        return embedding + update


def _initialize_linear(module: nn.Module) -> None:
    # The Swin blocks' standard deviation of 0.02 would make attention over hundreds of tokens uniform for long.
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
