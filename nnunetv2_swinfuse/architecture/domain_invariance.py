"""The Domain Invariance Module (SwinFUSE, arXiv 2405.12781): co-attention that extracts what CT and MR both show.

Two parallel blocks of multi-head attention layers. The queries of the CT block attend to the MR tokens' keys and
values, those of the MR block to the CT tokens' keys and values. In fine-tuning and inference there is one image: both
blocks get it for queries, keys and values, and their outputs are averaged.

Differs from the released code: the map is pooled to a bounded number of cells, so that the cost stays bounded for any
patch size; cells carry their position; layers are pre-norm with residuals and a feed-forward network; attention runs
over cells, never over the batch; and the result is interpolated and added to the full-resolution embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.cell_grid import (
    Spacing,
    apply_along_axes,
    choose_grid,
    interpolation_matrix,
    pooling_matrix,
    position_encoding,
)
from nnunetv2_swinfuse.architecture.operations import affordable_cells
from nnunetv2_swinfuse.architecture.swin import FeedForward
from nnunetv2_swinfuse.architecture.topology import Triple, triple

# Share of the backbone's operations that both blocks may use. Below the module's limit of one half, because pooling,
# interpolation and the last projection are not counted.
COST_SHARE = 0.45


@dataclass(frozen=True)
class DomainInvarianceSettings:
    """Sizes and initialisation of the module.

    Attributes:
        layers: attention layers of each block (the paper's 4).
        max_cells: largest number of cells in attention; larger maps are pooled.
        mlp_ratio: hidden channels of the feed-forward networks, relative to the embedding's.
        initial_scale: factor on the initial weights of the last projection: below 1, the module starts closer to the
            identity. Training can change it, so it means nothing for trained weights (compare LayerScale, arXiv
            2103.17239).
    """

    layers: int = 4
    max_cells: int = 2048
    mlp_ratio: float = 2.0
    initial_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.layers < 1 or self.max_cells < 1 or self.mlp_ratio <= 0:
            raise ValueError(f"domain_invariance: layers, max_cells and mlp_ratio must be positive, found {self}")
        if not 0 <= self.initial_scale < math.inf:
            raise ValueError(f"domain_invariance: initial_scale must be 0 or more, found {self.initial_scale}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DomainInvarianceSettings:
        """Settings from plans.json or an encoder file; fields left out have their default.

        Raises:
            ValueError: naming the fields that are not known, and the remedy for a model of an older version.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if "max_tokens" in unknown:
            raise ValueError(
                f"domain_invariance is {dict(values)}: the field max_tokens is of versions before 0.2, whose Domain "
                "Invariance Module computed other features (docs/method.md), so their weights do not fit this one. "
                "Pretrain and train again, or predict with nnunetv2-swinfuse 0.1"
            )
        if unknown:
            raise ValueError(
                f"domain_invariance has unknown fields {unknown}; known are {[field.name for field in fields(cls)]}"
            )
        return cls(**values)


def planned_domain_invariance(values: Mapping[str, Any] | None) -> DomainInvarianceSettings | None:
    """Settings from a network's arguments in plans.json; None where the network has no module."""
    return None if values is None else DomainInvarianceSettings.from_dict(values)


class CoAttentionLayer(nn.Module):
    """Queries of one token set, keys and values of another, then a residual feed-forward network.

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
        """Returns the new tokens (B, tokens, C) and, if requested, attention weights (B, heads, tokens, context)."""
        query_input, context = self.norm_query(tokens), self.norm_context(context)
        key_input = context
        if positions is not None:
            # Added in float32 and rounded once: rounding the positions first would add to the error of the sum.
            query_input = (query_input + positions).to(context.dtype)
            key_input = (context + positions).to(context.dtype)
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
    """Layers of co-attention that update the tokens; the context, the other modality's tokens, is the same for all."""

    def __init__(self, channels: int, num_heads: int, settings: DomainInvarianceSettings):
        super().__init__()
        self.layers = nn.ModuleList(
            CoAttentionLayer(channels, num_heads, settings.mlp_ratio) for _ in range(settings.layers)
        )

    def forward(
        self, tokens: Tensor, context: Tensor, positions: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the new tokens (B, tokens, C) and each layer's attention weights, an empty list unless requested."""
        all_weights = []
        for layer in self.layers:
            tokens, weights = layer(tokens, context, positions, need_weights)
            if weights is not None:
                all_weights.append(weights)
        return tokens, all_weights


class PairOutput(NamedTuple):
    """Outputs of the module for a CT and an MR map.

    Attributes:
        ct, mr: the maps (B, C, z, y, x), each with the normalised, projected and interpolated output of its block
            added.
        ct_tokens, mr_tokens: outputs of the two blocks (B, tokens, C), the samples for density matching.
        grid: cells per axis (z, y, x), one token each; its product is the number of tokens.
        ct_weights, mr_weights: attention weights of each layer, empty unless requested.
    """

    ct: Tensor
    mr: Tensor
    ct_tokens: Tensor
    mr_tokens: Tensor
    grid: Triple
    ct_weights: list[Tensor]
    mr_weights: list[Tensor]

    def averaged(self) -> PairOutput:
        """Both maps replaced by their average, as in the released code."""
        mean = (self.ct + self.mr) / 2
        return self._replace(ct=mean, mr=mean)


class SingleImageOutput(NamedTuple):
    """Outputs of the module for a single image.

    Attributes:
        map: (B, C, z, y, x), with the normalised, projected and interpolated average of both blocks added.
        tokens: that average (B, tokens, C).
        grid: cells per axis (z, y, x), one token each.
    """

    map: Tensor
    tokens: Tensor
    grid: Triple


class DomainInvariance(nn.Module):
    """Two parallel co-attention blocks over pooled cells, added to the full-resolution map.

    Args:
        channels: channels of the embedding, 6 or more and a multiple of `num_heads`.
        num_heads: attention heads of each layer.
        settings: sizes of the blocks and the initial size of the update.
        spacing: distance between tokens (z, y, x), in any unit: cells are as isotropic as the map allows.
        backbone_operations: function that returns the backbone's floating point operations on a map of a given size
            (z, y, x). The module attends over as many cells as cost less than half of that; None leaves
            `settings.max_cells` as the only bound.

    Raises:
        ValueError: for fewer than 6 channels, with which positions cannot be told apart.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        settings: DomainInvarianceSettings,
        spacing: Spacing = (1.0, 1.0, 1.0),
        backbone_operations: Callable[[Triple], float] | None = None,
    ):
        super().__init__()
        if channels < 6:
            raise ValueError(
                f"the Domain Invariance Module needs 6 channels or more to tell positions apart, found {channels}; use "
                "a larger feature_size, or no module"
            )
        self.channels = channels
        self.settings = settings
        self.spacing = spacing
        self.backbone_operations = backbone_operations
        # In training: moves the positions of every sample by a random distance, so that no place within a crop can be
        # recognised. Only pretraining sets it.
        self.random_shift = False
        self.ct_block = CoAttentionBlock(channels, num_heads, settings)
        self.mr_block = CoAttentionBlock(channels, num_heads, settings)
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, channels)
        self.apply(_initialize_linear)
        self.scale_update(settings.initial_scale)

    def forward(self, embedding: Tensor) -> Tensor:
        """Single image of either modality: both blocks attend to it, their outputs are averaged. (B, C, z, y, x)."""
        return self.forward_single(embedding).map

    def forward_single(self, embedding: Tensor) -> SingleImageOutput:
        """As :meth:`forward`, with the tokens: the average of both blocks' outputs."""
        pooled, positions, grid = self.pool(embedding, self._shift(embedding))
        ct_tokens, _ = self.ct_block(pooled, pooled, positions)
        mr_tokens, _ = self.mr_block(pooled, pooled, positions)
        tokens = (ct_tokens + mr_tokens) / 2
        update = self.update(tokens, grid, triple(embedding.shape[2:]))
        return SingleImageOutput(embedding + update, tokens, grid)

    def forward_pair(
        self,
        ct: Tensor,
        mr: Tensor,
        need_weights: bool = False,
        ct_partner: Tensor | None = None,
        mr_partner: Tensor | None = None,
    ) -> PairOutput:
        """A CT and an MR map (B, C, z, y, x), each attending to the other, or each to a partner of its own.

        Args:
            ct, mr: embeddings.
            need_weights: also return the attention weights.
            ct_partner, mr_partner: embeddings that the queries of CT and of MR attend to; `mr` and `ct` when None.

        Raises:
            ValueError: when the shapes differ.
        """
        ct_partner = mr if ct_partner is None else ct_partner
        mr_partner = ct if mr_partner is None else mr_partner
        shapes = [tuple(embedding.shape) for embedding in (ct, mr, ct_partner, mr_partner)]
        if len(set(shapes)) > 1:
            raise ValueError(f"CT and MR maps and their partners must have the same shape, found {shapes}")
        ct_pooled, positions, grid = self.pool(ct, self._shift(ct))
        mr_pooled, _, _ = self.pool(mr)
        # The same map is not pooled twice.
        ct_context = mr_pooled if ct_partner is mr else self.pool(ct_partner)[0]
        mr_context = ct_pooled if mr_partner is ct else self.pool(mr_partner)[0]
        ct_tokens, ct_weights = self.ct_block(ct_pooled, ct_context, positions, need_weights)
        mr_tokens, mr_weights = self.mr_block(mr_pooled, mr_context, positions, need_weights)
        shape = triple(ct.shape[2:])
        return PairOutput(
            ct + self.update(ct_tokens, grid, shape),
            mr + self.update(mr_tokens, grid, shape),
            ct_tokens,
            mr_tokens,
            grid,
            ct_weights,
            mr_weights,
        )

    @torch.no_grad()
    def scale_update(self, factor: float) -> None:
        """Multiplies what the module adds to its input, in place; with 0 the module is the identity."""
        self.proj.weight.mul_(factor)
        self.proj.bias.mul_(factor)

    def grid(self, shape: Triple) -> Triple:
        """Cells per axis (z, y, x) for a map of `shape` tokens (z, y, x)."""
        cells = float(self.settings.max_cells)
        if self.backbone_operations is not None:
            layers, ratio = self.settings.layers, self.settings.mlp_ratio
            budget = COST_SHARE * self.backbone_operations(shape)
            cells = min(cells, affordable_cells(budget, self.channels, layers, ratio))
        return choose_grid(shape, self.spacing, cells)

    def _shift(self, embedding: Tensor) -> Tensor | None:
        if not (self.training and self.random_shift):
            return None
        return torch.rand(len(embedding), 3, device=embedding.device)

    def pool(self, embedding: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor, Triple]:
        """(B, C, z, y, x) to tokens (B, N, C), one a cell, their float32 positions (N, C) and their grid (z, y, x).

        With a `shift` of the positions (B, 3), see :func:`position_encoding`, these are (B, N, C).
        """
        shape = triple(embedding.shape[2:])
        grid = self.grid(shape)
        device = embedding.device
        if grid != shape:
            matrices = [pooling_matrix(size, cells, device) for size, cells in zip(shape, grid, strict=True)]
            embedding = apply_along_axes(embedding, matrices)
        z, y, x = (distance * size / cells for distance, size, cells in zip(self.spacing, shape, grid, strict=True))
        return (
            embedding.flatten(2).transpose(1, 2),
            position_encoding(grid, (z, y, x), embedding.shape[1], device, shift),
            grid,
        )

    def update(self, tokens: Tensor, grid: Triple, shape: Triple) -> Tensor:
        """The update (B, C, z, y, x) of a map of `shape`, from the tokens (B, N, C) of its cells."""
        update = self.proj(self.norm(tokens)).transpose(1, 2).unflatten(2, grid)
        if grid == shape:
            return update
        device = tokens.device
        return apply_along_axes(
            update, [interpolation_matrix(size, cells, device) for size, cells in zip(shape, grid, strict=True)]
        )


def _initialize_linear(module: nn.Module) -> None:
    # With the Swin blocks' standard deviation of 0.02, attention over hundreds of tokens would stay uniform for long.
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
