"""The part that is pretrained and transferred: Domain Invariance Module and the stages of a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.cell_grid import Spacing
from nnunetv2_swinfuse.architecture.domain_invariance import (
    DomainInvariance,
    DomainInvarianceSettings,
    PairOutput,
    SingleImageOutput,
)
from nnunetv2_swinfuse.architecture.topology import (
    Topology,
    Triple,
    plan_topology,
    residual_topology,
    triple,
)

Backbone = Literal["swin", "resenc"]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
# Settings of Swin blocks, which a residual encoder does not have.
SWIN_ONLY = ("window_size", "mlp_ratio", "monai_legacy_merging", "monai_clamped_bias")


@dataclass(frozen=True)
class EncoderSettings:
    """Sizes of the encoder, independent of patch size, strides and input channels; JSON-serialisable.

    The defaults are those of SwinFUSE and Swin UNETR. With the backbone `resenc` the settings of Swin blocks
    (`window_size`, `mlp_ratio`, `monai_...`) mean nothing and are set to their defaults.

    Attributes:
        feature_size: channels of the patch embedding, doubled by every merging; with `resenc` those of the stem and
            the first stage, doubled by every further stage up to nnU-Net's 320.
        depths: blocks of each stage. A residual encoder may have more stages: they are as deep as the last one listed.
        num_heads: heads of each Swin stage; the first also serves the Domain Invariance Module. With `resenc` one
            number, the module's.
        window_size: window in tokens along each axis.
        mlp_ratio: hidden channels of the feed-forward networks, relative to their input's.
        domain_invariance: sizes of the module, also accepted as a dictionary; None for an encoder without it.
        monai_legacy_merging: patch merging joins the sub-grids that MONAI joined before version 1.5, two of them twice
            and two never. For weights trained that way, which give wrong features otherwise.
        monai_clamped_bias: windows clamped to small maps look up their bias as MONAI's do, at wrong offsets. For
            weights trained that way.
        backbone: `swin`, or `resenc`, nnU-Net's residual encoder.
    """

    feature_size: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    domain_invariance: DomainInvarianceSettings | None = field(default_factory=DomainInvarianceSettings)
    monai_legacy_merging: bool = False
    monai_clamped_bias: bool = False
    backbone: Backbone = "swin"

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "num_heads", tuple(self.num_heads))
        if isinstance(self.domain_invariance, Mapping):
            settings = DomainInvarianceSettings.from_dict(self.domain_invariance)
            object.__setattr__(self, "domain_invariance", settings)
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone is {self.backbone!r}; expected one of {list(BACKBONES)}")
        if self.backbone == "resenc":
            for name in SWIN_ONLY:
                object.__setattr__(self, name, getattr(type(self), name))
            if not self.depths or len(self.num_heads) != 1:
                raise ValueError(
                    f"backbone resenc with depths {list(self.depths)} and num_heads {list(self.num_heads)}; expected "
                    "the residual blocks of each stage and one number of heads, the Domain Invariance Module's"
                )
        elif not self.depths or len(self.depths) != len(self.num_heads):
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

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and dictionaries, for checkpoints; only what the backbone has."""
        values = {**asdict(self), "depths": list(self.depths), "num_heads": list(self.num_heads)}
        return {n: value for n, value in values.items() if self.backbone == "swin" or n not in SWIN_ONLY}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderSettings:
        """Raises ValueError naming the fields that are not known."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown encoder settings {unknown}; known are {[f.name for f in fields(cls)]}")
        return cls(**values)

    def topology(self, strides: Sequence[Sequence[int]]) -> Topology:
        """Which part of the network downsamples at each stage of a plan; raises ValueError for impossible strides."""
        if self.backbone == "resenc":
            return residual_topology(strides)
        return plan_topology(strides, len(self.depths))

    def stage_depths(self, stages: int) -> tuple[int, ...]:
        """Blocks of each stage of a residual encoder with this number of stages."""
        return (*self.depths, *[self.depths[-1]] * (stages - len(self.depths)))[:stages]


class DomainInvariantEncoder(nn.Module):
    """Domain Invariance Module, then a backbone: subclasses say how an embedding becomes feature maps.

    Args:
        settings: sizes.
        operations: floating point operations of the backbone on an embedding of a given size (z, y, x), which bound
            those of the module.
        spacing: distance between the embedding's tokens (z, y, x), in any unit.

    Attributes:
        output_channels: channels of each feature map, finest first; set by the subclass.
    """

    output_channels: list[int]

    def __init__(self, settings: EncoderSettings, operations: Callable[[Triple], float], spacing: Spacing):
        super().__init__()
        self.domain_invariance: DomainInvariance | None = None
        if settings.domain_invariance is not None:
            self.domain_invariance = DomainInvariance(
                settings.feature_size, settings.num_heads[0], settings.domain_invariance, spacing, operations
            )

    def features(self, embedding: Tensor) -> list[Tensor]:
        """The maps (B, C, z, y, x), finest first, of an embedding that has been through the module."""
        raise NotImplementedError

    def tokens(self, embedding: Tensor) -> tuple[Tensor, Triple]:
        """Replaces the module's tokens (B, tokens, C) where there is no module; also returns their grid (z, y, x)."""
        return embedding.flatten(2).transpose(1, 2), triple(embedding.shape[2:])

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """One image of any modality.

        Args:
            embedding: (B, feature_size, z, y, x), of the patch embedding or the stem.

        Returns:
            The backbone's feature maps, finest first, each (B, C, z, y, x).
        """
        if self.domain_invariance is not None:
            embedding = self.domain_invariance(embedding)
        return self.features(embedding)

    def mix_single(self, embedding: Tensor) -> SingleImageOutput:
        """The Domain Invariance Module's outputs for a single image; :meth:`features` continues from their map.

        Args:
            embedding: (B, feature_size, z, y, x).
        """
        if self.domain_invariance is not None:
            return self.domain_invariance.forward_single(embedding)
        return SingleImageOutput(embedding, *self.tokens(embedding))

    def mix_pair(
        self,
        ct: Tensor,
        mr: Tensor,
        need_weights: bool = False,
        ct_partner: Tensor | None = None,
        mr_partner: Tensor | None = None,
    ) -> PairOutput:
        """The Domain Invariance Module's outputs for a CT and an MR image, each seeing the other or its own partner.

        Args:
            ct, mr: embeddings (B, feature_size, z, y, x).
            need_weights: also return the module's attention weights.
            ct_partner, mr_partner: see :meth:`DomainInvariance.forward_pair`.
        """
        if self.domain_invariance is not None:
            return self.domain_invariance.forward_pair(ct, mr, need_weights, ct_partner, mr_partner)
        (ct_tokens, grid), (mr_tokens, _) = self.tokens(ct), self.tokens(mr)
        return PairOutput(ct, mr, ct_tokens, mr_tokens, grid, [], [])
