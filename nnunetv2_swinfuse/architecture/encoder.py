"""The part that is pretrained and transferred: Domain Invariance Module and Swin stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.domain_invariance import DomainInvariance, DomainInvarianceSettings
from nnunetv2_swinfuse.architecture.swin import SwinStage
from nnunetv2_swinfuse.architecture.topology import Triple

Fusion = Literal["separate", "mean"]


def default_domain_invariance() -> dict[str, Any]:
    return DomainInvarianceSettings().to_dict()


@dataclass(frozen=True)
class EncoderSettings:
    """Sizes of the encoder, independent of patch size, strides and input channels; JSON-able.

    The defaults are those of SwinFUSE and Swin UNETR.

    Attributes:
        feature_size: channels of the patch embedding; doubled by every merging.
        depths: blocks of each Swin stage.
        num_heads: heads of each Swin stage; the first also serves the Domain Invariance Module.
        window_size: window in tokens along each axis.
        mlp_ratio: hidden channels of the feed-forward networks, relative to their input's.
        domain_invariance: fields of :class:`DomainInvarianceSettings`, or None for an encoder without the module.
        monai_legacy_merging: patch merging joins the sub-grids that MONAI joined before version 1.5, two of them twice
            and two never. For weights trained so, which mean nothing otherwise.
        monai_clamped_bias: windows clamped to small maps look up their bias as MONAI's do, at wrong offsets. For
            weights trained so.
    """

    feature_size: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    domain_invariance: dict[str, Any] | None = field(default_factory=default_domain_invariance)
    monai_legacy_merging: bool = False
    monai_clamped_bias: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "num_heads", tuple(self.num_heads))
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths {list(self.depths)} and num_heads {list(self.num_heads)} must list the same Swin stages"
            )
        if self.feature_size < 1 or self.window_size < 1 or min(self.depths) < 1 or min(self.num_heads) < 1:
            raise ValueError(f"feature_size, window_size, depths and num_heads must be positive, found {self}")
        for stage, heads in enumerate(self.num_heads):
            if (self.feature_size << stage) % heads:
                raise ValueError(
                    f"num_heads[{stage}] is {heads}, which does not divide the stage's {self.feature_size << stage} "
                    f"channels (feature_size {self.feature_size} doubled {stage} times)"
                )
        if self.domain_invariance is not None:
            DomainInvarianceSettings(**self.domain_invariance)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and dictionaries, for plans.json and checkpoints."""
        values = asdict(self)
        return {**values, "depths": list(self.depths), "num_heads": list(self.num_heads)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderSettings:
        """Raises ValueError naming the fields that are not known."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown encoder settings {unknown}; known are {[f.name for f in fields(cls)]}")
        return cls(**values)


class PairFeatures(NamedTuple):
    """Features of a CT and an MR image that went through the module together.

    Attributes:
        ct, mr: a list of maps per modality, as :meth:`SwinEncoder.forward` returns it.
        ct_tokens, mr_tokens: (B, tokens, C) for density matching: the outputs of the module's two blocks.
        grid: how those tokens lie in space (z, y, x).
        ct_weights, mr_weights: attention weights of each layer of the module, if asked for.
        change: norm of what the module adds, relative to its input's; 0 without the module.
    """

    ct: list[Tensor]
    mr: list[Tensor]
    ct_tokens: Tensor
    mr_tokens: Tensor
    grid: Triple
    ct_weights: list[Tensor]
    mr_weights: list[Tensor]
    change: Tensor


class SwinEncoder(nn.Module):
    """Domain Invariance Module and Swin stages on a patch embedding.

    Args:
        settings: sizes.
        merge_strides: stride of each stage's merging (z, y, x); at most as many as the settings have stages.
        drop_path_rate: stochastic depth, rising linearly from 0 at the first block to this at the last.
        checkpointing: trade time for memory in the Swin blocks.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        merge_strides: Sequence[Triple],
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
    ):
        super().__init__()
        if len(merge_strides) > len(settings.depths):
            raise ValueError(f"{len(merge_strides)} merge strides for {len(settings.depths)} Swin stages")
        self.domain_invariance: DomainInvariance | None = None
        if settings.domain_invariance is not None:
            self.domain_invariance = DomainInvariance(
                settings.feature_size, settings.num_heads[0], DomainInvarianceSettings(**settings.domain_invariance)
            )
        depths = settings.depths[: len(merge_strides)]
        rates = [drop_path_rate * block / max(sum(depths) - 1, 1) for block in range(sum(depths))]
        stages = []
        for index, stride in enumerate(merge_strides):
            first = sum(depths[:index])
            stages.append(
                SwinStage(
                    settings.feature_size << index,
                    settings.num_heads[index],
                    (settings.window_size,) * 3,
                    stride,
                    settings.mlp_ratio,
                    rates[first : first + depths[index]],
                    checkpointing,
                    settings.monai_legacy_merging,
                    settings.monai_clamped_bias,
                )
            )
        self.stages = nn.ModuleList(stages)
        self.output_channels = [settings.feature_size << index for index in range(len(merge_strides) + 1)]
        self.stages.apply(_initialize_linear)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """One image of any modality.

        Args:
            embedding: (B, feature_size, z, y, x), the patch embedding.

        Returns:
            The embedding behind the module and the output of each stage, channels normalised, each (B, C, z, y, x).
        """
        if self.domain_invariance is not None:
            embedding = self.domain_invariance(embedding)
        return self._swin(embedding)

    def forward_pair(
        self, ct: Tensor, mr: Tensor, fusion: Fusion = "separate", need_weights: bool = False
    ) -> PairFeatures:
        """A CT and an MR image, each seeing the other in the module.

        Args:
            ct, mr: patch embeddings (B, feature_size, z, y, x).
            fusion: `separate` sends each modality's map through the Swin stages by itself; `mean`, the released
                reading, sends the average of both.
            need_weights: also return the module's attention weights.
        """
        ct_in, mr_in = ct, mr
        grid = (ct.shape[2], ct.shape[3], ct.shape[4])
        tokens = (ct.flatten(2).transpose(1, 2), mr.flatten(2).transpose(1, 2))
        weights: tuple[list[Tensor], list[Tensor]] = ([], [])
        if self.domain_invariance is not None:
            fused = self.domain_invariance.forward_pair(ct, mr, need_weights)
            ct, mr, grid = fused.ct, fused.mr, fused.grid
            tokens, weights = (fused.ct_tokens, fused.mr_tokens), (fused.ct_weights, fused.mr_weights)
        with torch.no_grad():
            change = ((ct - ct_in).norm() + (mr - mr_in).norm()) / (ct_in.norm() + mr_in.norm()).clamp_min(1e-12)
        if fusion == "mean":
            features = self._swin((ct + mr) / 2)
            return PairFeatures(features, features, *tokens, grid, *weights, change)
        features = self._swin(torch.cat([ct, mr]))
        batch = len(ct)
        return PairFeatures(
            [f[:batch] for f in features], [f[batch:] for f in features], *tokens, grid, *weights, change
        )

    def _swin(self, embedding: Tensor) -> list[Tensor]:
        x = embedding.permute(0, 2, 3, 4, 1)
        features = [_normalized(x)]
        for stage in self.stages:
            x = stage(x)
            features.append(_normalized(x))
        return features


def _normalized(x: Tensor) -> Tensor:
    """Channels-last (B, z, y, x, C) to (B, C, z, y, x), each token's channels to mean 0 and variance 1."""
    return F.layer_norm(x, x.shape[-1:]).permute(0, 4, 1, 2, 3).contiguous()


def _initialize_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
