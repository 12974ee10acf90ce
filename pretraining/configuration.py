"""Every setting of a pretraining run: one frozen dataclass, filled from a preset and the command line, and checked.

The field of a setting is the only place that states its type, its default and its help text: the command line
(:mod:`pretraining.options`) and docs/settings.md (:mod:`pretraining.settings_page`) are generated from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nnunetv2_swinfuse.architecture.domain_invariance import DomainInvarianceSettings
from nnunetv2_swinfuse.architecture.encoder import Backbone, EncoderSettings, Fusion
from nnunetv2_swinfuse.architecture.topology import Topology, Triple, check_patch_size
from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import DOMAINS, Domain
from pretraining.losses.density import DensityLoss
from pretraining.preprocessed.turnable import is_isotropic_plane
from pretraining.views import Masking

Task = Literal["inpainting", "contrastive", "rotation"]
TASKS: tuple[Task, ...] = get_args(Task)
Strides = tuple[tuple[int, ...], ...]
SecondView = Literal["single_image", "paired"]
Partner = Literal["other_modality", "pseudo_pair"]
InpaintingHeadKind = Literal["linear", "pyramid"]
ContrastiveLoss = Literal["nt_xent", "vicreg"]
DensityLevel = Literal["paired", "single_image", "stages"]
DENSITY_LEVELS: tuple[DensityLevel, ...] = get_args(DensityLevel)

# Settings that may differ when a run is resumed: they change neither the losses nor what is learnt.
FREE_ON_RESUME = frozenset(
    {"workers", "checkpoint_every", "validate_every", "validation_batches", "device", "tensorboard"}
)
# Groups of settings, in the order of the fields.
GROUPS = ("data", "network", "training", "losses", "run")


def _about(group: str, explanation: str) -> dict[str, str]:
    """Metadata of a setting: the group and the help text of its option."""
    return {"group": group, "help": explanation}


@dataclass(frozen=True)
class Configuration:
    """Settings of a pretraining run; each is explained where it is defined.

    The defaults are those of the paper and its released code, where they name a value.
    """

    preset: str = field(
        default="base", metadata=_about("run", "preset that the run started from: its sizes and length")
    )
    recipe: str = field(default="swinfuse", metadata=_about("run", "recipe: what is learnt, and how"))

    modalities: tuple[Domain, ...] = field(
        default=DOMAINS, metadata=_about("data", "modalities to learn from; with a single one there are no pairs")
    )
    crop_size: tuple[int, ...] = field(
        default=(96, 96, 96),
        metadata=_about(
            "data",
            "crop in voxels (z, y, x), divisible by the product of the strides; y equals x because of quarter turns",
        ),
    )
    spacing: tuple[float, float, float] | None = field(
        default=None, metadata=_about("data", "voxel spacing in mm (z, y, x); default: the median of the collection")
    )
    batch_size: int = field(
        default=2,
        metadata=_about("data", "pairs of a CT and an MR crop per step, over all processes; each crop gives two views"),
    )
    validation_share: float = field(
        default=0.1, metadata=_about("data", "share of the patients that is kept for validation")
    )
    foreground_share: float = field(
        default=0.67, metadata=_about("data", "share of the crops that are centred on the body")
    )

    backbone: Backbone = field(
        default=EncoderSettings.backbone, metadata=_about("network", "swin, or resenc: nnU-Net's residual encoder")
    )
    strides: Strides = field(
        default=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        metadata=_about("network", "stride of each stage (z, y, x), as in nnU-Net's plans; the first is 1"),
    )
    feature_size: int = field(
        default=EncoderSettings.feature_size,
        metadata=_about("network", "channels of the patch embedding, doubled by each merging"),
    )
    depths: tuple[int, ...] = field(default=EncoderSettings.depths, metadata=_about("network", "blocks of each stage"))
    num_heads: tuple[int, ...] = field(
        default=EncoderSettings.num_heads,
        metadata=_about("network", "attention heads of each stage; the first is also that of the DIM"),
    )
    window_size: int = field(
        default=EncoderSettings.window_size, metadata=_about("network", "attention window in tokens along each axis")
    )
    mlp_ratio: float = field(
        default=EncoderSettings.mlp_ratio,
        metadata=_about("network", "hidden channels of the feed-forward networks, relative to their input"),
    )
    dim: Literal["co_attention", "none"] = field(
        default="co_attention",
        metadata=_about("network", "Domain Invariance Module (DIM), or none for an encoder without it"),
    )
    dim_layers: int = field(
        default=DomainInvarianceSettings.layers, metadata=_about("network", "attention layers of each block of the DIM")
    )
    dim_max_cells: int = field(
        default=DomainInvarianceSettings.max_cells,
        metadata=_about("network", "largest number of cells in the DIM; larger maps are pooled"),
    )
    fusion: Fusion = field(
        default="separate",
        metadata=_about("network", "maps after the DIM: separate for CT and MR, or their mean as in the released code"),
    )
    second_view: SecondView = field(
        default="single_image",
        metadata=_about(
            "network",
            "how the second view of each crop passes the DIM: as a single image, as in fine-tuning, or paired like the "
            "first, with the same partner",
        ),
    )
    partner: Partner = field(
        default="other_modality",
        metadata=_about(
            "network",
            "what the first view of a crop attends to in the DIM: the crop of the other modality, or (pseudo_pair) "
            "itself in a random contrast, unless it is registered with a crop of the other modality",
        ),
    )
    drop_path_rate: float = field(default=0.0, metadata=_about("network", "largest rate of stochastic depth"))
    checkpointing: bool = field(
        default=False,
        metadata=_about("network", "recompute Swin blocks or residual stages in the backward pass, to save memory"),
    )
    init_from: str = field(
        default="",
        metadata=_about("network", "encoder file of SwinFUSE or MONAI to start from; default: random weights"),
    )
    freeze_encoder: bool = field(
        default=False,
        metadata=_about(
            "network", "train only the heads: the control that shows what they learn without the encoder's training"
        ),
    )
    monai_legacy_merging: bool = field(
        default=False,
        metadata=_about("network", "patch merging of MONAI before version 1.5; set according to --init_from"),
    )
    monai_clamped_bias: bool = field(
        default=False,
        metadata=_about(
            "network", "MONAI's lookup of the position bias in clamped windows; set according to --init_from"
        ),
    )

    steps: int = field(default=100_000, metadata=_about("training", "optimiser steps; 0 publishes the initial encoder"))
    warmup_steps: int = field(
        default=500, metadata=_about("training", "steps of linear warm-up, followed by a cosine decay")
    )
    learning_rate: float = field(default=4e-4, metadata=_about("training", "largest learning rate of AdamW"))
    weight_decay: float = field(default=0.1, metadata=_about("training", "weight decay of AdamW"))
    gradient_clip: float = field(default=1.0, metadata=_about("training", "largest norm of the gradient"))

    tasks: tuple[Task, ...] = field(
        default=TASKS, metadata=_about("losses", "proxy tasks; the losses of others are left out")
    )
    temperature: float = field(default=0.5, metadata=_about("losses", "temperature of the contrastive losses"))
    quarter_turns: bool = field(
        default=True,
        metadata=_about(
            "losses",
            "turn crops in the axial plane, for the rotation task; not where it is anisotropic or the crop is padded",
        ),
    )
    corrupted_share: float = field(default=0.6, metadata=_about("losses", "share of a crop's voxels that is cut out"))
    masking: Masking = field(
        default="cells", metadata=_about("losses", "cut out cells of a grid, or blocks of random size and position")
    )
    mask_cell: int = field(
        default=0,
        metadata=_about("losses", "side of a cell in voxels, with --masking cells; 0: the voxels of a deepest token"),
    )
    complementary_masks: bool = field(
        default=True,
        metadata=_about("losses", "cut out of the partner of a pseudo-pair or registered pair what its crop shows"),
    )
    random_contrast: float = field(
        default=0.0, metadata=_about("losses", "probability that a view is rendered in a random contrast")
    )
    inpainting_head: InpaintingHeadKind = field(
        default="linear",
        metadata=_about(
            "losses", "linear: one linear layer per resolution; pyramid: convolutions that also see the embedding"
        ),
    )
    visible_weight: float = field(
        default=0.0,
        metadata=_about("losses", "weight of visible voxels in the inpainting loss, relative to cut-out voxels"),
    )
    inpainting_weight: float = field(default=1.0, metadata=_about("losses", "weight of the inpainting loss"))
    contrastive_weight: float = field(
        default=1.0, metadata=_about("losses", "weight of the contrastive loss within a modality")
    )
    contrastive_loss: ContrastiveLoss = field(
        default="vicreg",
        metadata=_about(
            "losses",
            "nt_xent: vectors of crops, with the other crops as negatives; vicreg: features at the same place of two "
            "views, without negatives",
        ),
    )
    cross_modal_weight: float = field(
        default=1.0, metadata=_about("losses", "weight of the contrastive loss between CT and MR of registered pairs")
    )
    distillation_weight: float = field(
        default=0.0,
        metadata=_about("losses", "weight of distilling the paired first view into the single-image second view"),
    )
    variance_weight: float = field(
        default=1.0, metadata=_about("losses", "weight of VICReg's variance term, on the features of every stage")
    )
    covariance_weight: float = field(
        default=0.1, metadata=_about("losses", "weight of VICReg's covariance term, on the features of every stage")
    )
    rotation_weight: float = field(default=1.0, metadata=_about("losses", "weight of the rotation loss"))
    density_weight: float = field(default=1.0, metadata=_about("losses", "weight of density matching"))
    density_levels: tuple[DensityLevel, ...] = field(
        default=DENSITY_LEVELS,
        metadata=_about(
            "losses",
            "which tokens are matched: the DIM's for pairs, the DIM's for single images, those of the deeper stages "
            "for single images",
        ),
    )
    density_loss: DensityLoss = field(
        default="kde_jsd",
        metadata=_about(
            "losses", "loss of density matching: divergence of kernel densities, or an alternative to compare"
        ),
    )
    density_warmup_steps: int = field(
        default=5_000, metadata=_about("losses", "steps over which the weight of density matching rises")
    )
    density_dimensions: int = field(
        default=8, metadata=_about("losses", "dimensions to which tokens are projected for density matching")
    )
    density_samples: int = field(
        default=512, metadata=_about("losses", "largest number of tokens per modality in density matching")
    )

    seed: int = field(default=0, metadata=_about("run", "seed of all randomness"))
    validate_every: int = field(default=1_000, metadata=_about("run", "steps between validations"))
    validation_batches: int = field(default=16, metadata=_about("run", "batches per validation"))
    checkpoint_every: int = field(default=500, metadata=_about("run", "steps between checkpoints"))
    workers: int = field(default=4, metadata=_about("run", "processes that load crops"))
    tensorboard: bool = field(default=False, metadata=_about("run", "write the records for TensorBoard as well"))
    device: Literal["auto", "cuda", "cpu"] = field(
        default="auto", metadata=_about("run", "device to train on; auto: a GPU if there is one")
    )

    def __post_init__(self) -> None:
        for name, choices in setting_choices().items():
            value = getattr(self, name)
            if name not in LISTS_OF_CHOICES:
                _require(value in choices, name, value, f"one of {list(choices)}")
                continue
            valid = not isinstance(value, str) and set(value) <= set(choices) and len(set(value)) == len(value) > 0
            _require(valid, name, value, f"one or several of {list(choices)}")
            object.__setattr__(self, name, tuple(choice for choice in choices if choice in value))
        for name in ("crop_size", "depths", "num_heads", "spacing"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        object.__setattr__(self, "strides", tuple(tuple(int(s) for s in stride) for stride in self.strides))
        try:
            topology = self.topology
            check_patch_size(self.crop_size, topology)
        except (TypeError, ValueError) as error:
            raise InputError(f"configuration: {error}{self._recipe_hint()}") from error
        if self.quarter_turns and self.crop_size[1] != self.crop_size[2]:
            raise InputError(
                f"crop_size is {list(self.crop_size)}; expected (z, y, x) with y equal to x, because crops are turned "
                "by quarters in that plane (--no-quarter_turns leaves the turns and the rotation task out)"
            )
        if topology.convolution_strides:
            raise InputError(
                f"strides list {len(self.strides)} stages, but the encoder has patches and {len(self.depths)} Swin "
                f"stages; give at most {len(self.depths) + 2} strides"
            )
        if self.spacing is not None and (len(self.spacing) != 3 or min(self.spacing) <= 0):
            raise InputError(f"spacing is {list(self.spacing)}; expected three positive numbers, mm along z, y, x")
        for name in ("batch_size", "validate_every", "validation_batches", "checkpoint_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        not_negative = (
            "steps",
            "warmup_steps",
            "density_warmup_steps",
            "workers",
            "weight_decay",
            "seed",
            "mask_cell",
            "visible_weight",
        )
        for name in (*not_negative, *LOSS_WEIGHTS.values()):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "gradient_clip", "temperature", "density_dimensions"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("validation_share", "foreground_share", "random_contrast", "drop_path_rate"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        _require(
            0 < self.corrupted_share < 1, "corrupted_share", self.corrupted_share, "between 0 and 1, both excluded"
        )
        _require(
            self.contrastive_loss == "nt_xent" or not self.loss_weight("contrastive") or self.variance_weight > 0,
            "variance_weight", self.variance_weight,
            "more than 0 with --contrastive_loss vicreg, which otherwise makes all features alike",
        )  # fmt: skip
        with_heads = ("inpainting", "rotation", *(("contrastive",) if self.contrastive_loss == "nt_xent" else ()))
        _require(
            not self.freeze_encoder or any(self.loss_weight(task) for task in with_heads),
            "freeze_encoder", self.freeze_encoder, f"False without a task that has a head: {', '.join(with_heads)}",
        )  # fmt: skip
        _require(
            self.partner == "other_modality" or self.masking == "cells",
            "partner", self.partner, "other_modality with --masking blocks; pseudo-pairs need --masking cells",
        )  # fmt: skip
        _require(self.density_samples >= 2, "density_samples", self.density_samples, "at least 2")
        _require(
            any(self.loss_weight(task) for task in TASKS),
            f"the weight of {', '.join(self.tasks)}", 0, "more than 0 for one proxy task at least",
        )  # fmt: skip

    def _recipe_hint(self) -> str:
        """A hint for --backbone resenc without its recipe: the preset's sizes are those of Swin."""
        sizes_of_swin = self.backbone == "resenc" and len(self.num_heads) != 1
        return ". --recipe resenc sets nnU-Net's sizes" if sizes_of_swin else ""

    @property
    def pairs_views(self) -> bool:
        """Whether the first view of each crop passes the DIM with a partner."""
        return self.dim != "none" and len(self.modalities) == len(DOMAINS)

    @property
    def mask_cells(self) -> Triple:
        """Voxels of a cell that is cut out (z, y, x)."""
        if self.mask_cell:
            return self.mask_cell, self.mask_cell, self.mask_cell
        return self.topology.downsampling

    @property
    def topology(self) -> Topology:
        return self.encoder_settings.topology(self.strides)

    @property
    def encoder_settings(self) -> EncoderSettings:
        invariance = DomainInvarianceSettings(self.dim_layers, self.dim_max_cells)
        return EncoderSettings(
            feature_size=self.feature_size,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            mlp_ratio=self.mlp_ratio,
            domain_invariance=invariance if self.dim == "co_attention" else None,
            monai_legacy_merging=self.monai_legacy_merging,
            monai_clamped_bias=self.monai_clamped_bias,
            backbone=self.backbone,
        )

    def for_spacing(self, spacing: Sequence[float]) -> Configuration:
        """These settings for the volumes' spacing: without quarter turns if the axial plane is not isotropic.

        A quarter turn exchanges the spacings of y and x, so it could be recognised by the distortion.

        Args:
            spacing: of the preprocessed volumes, mm (z, y, x).

        Raises:
            InputError: when rotation is the only task.
        """
        z, y, x = (float(distance) for distance in spacing)
        turned = self.quarter_turns and bool(is_isotropic_plane(y, x))
        try:
            return replace(self, spacing=(z, y, x), quarter_turns=turned)
        except InputError as error:
            raise InputError(
                f"the volumes' spacing is {[round(float(s), 3) for s in spacing]} mm (z, y, x): quarter turns of a "
                f"plane that is not isotropic can be inferred from the distortion, so there is no rotation task, and "
                f"{error}. Set --spacing with equal y and x, or other --tasks"
            ) from error

    def loss_weight(self, loss: str) -> float:
        """The weight of a loss, a key of `LOSS_WEIGHTS`; 0 where it is left out."""
        if (loss in TASKS and loss not in self.tasks) or (loss == "rotation" and not self.quarter_turns):
            return 0.0
        # With the mean of both maps, CT and MR features are the same.
        two_maps = len(self.modalities) == len(DOMAINS) and (self.fusion != "mean" or self.second_view != "paired")
        if loss == "cross_modal" and not (self.loss_weight("contrastive") and two_maps):
            return 0.0
        if loss == "density" and len(self.modalities) < len(DOMAINS):
            return 0.0
        if loss == "distillation" and not self.pairs_views:
            return 0.0
        return float(getattr(self, LOSS_WEIGHTS[loss]))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain lists, numbers and strings, for JSON and checkpoints."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "configuration") -> Configuration:
        """The settings of a mapping, others at their defaults; raises InputError naming unknown settings."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"{source}: unknown settings {unknown}; swinfuse_pretrain --help lists all")
        return cls(**values)


LOSS_WEIGHTS = {
    "inpainting": "inpainting_weight",
    "contrastive": "contrastive_weight",
    "cross_modal": "cross_modal_weight",
    "distillation": "distillation_weight",
    "rotation": "rotation_weight",
    "density": "density_weight",
    "variance": "variance_weight",
    "covariance": "covariance_weight",
}
# Settings that are one or several of their choices.
LISTS_OF_CHOICES = ("modalities", "tasks", "density_levels")


def setting_choices() -> dict[str, tuple[str, ...]]:
    """The values that settings with a `Literal` type may have, by name; see also `LISTS_OF_CHOICES`."""
    choices: dict[str, tuple[str, ...]] = {}
    for name, kind in get_type_hints(Configuration).items():
        if name in LISTS_OF_CHOICES:
            kind = get_args(kind)[0]
        if get_origin(kind) is Literal:
            choices[name] = get_args(kind)
    return choices


def changed_settings(old: Configuration, new: Configuration) -> list[str]:
    """Describes the settings that must not differ between a run and its resumption but do."""
    before, after = old.to_dict(), new.to_dict()
    return [
        f"{name}: {before[name]} in the run, {after[name]} now"
        for name in before
        if before[name] != after[name] and name not in FREE_ON_RESUME
    ]


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise InputError(f"{name} is {value}; expected {expected}")
