"""The settings of a pretraining run: the type, default and help text of each, as fields of one dataclass.

A field is the only place that states these: the command line (:mod:`pretraining.options`) and docs/settings.md
(:mod:`pretraining.settings_page`) are generated from them. What values fit together: :mod:`pretraining.configuration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin, get_type_hints

from nnunetv2_swinfuse.architecture.domain_invariance import DomainInvarianceSettings
from nnunetv2_swinfuse.architecture.encoder import Backbone, EncoderSettings
from pretraining.collections.collection import DOMAINS, Domain
from pretraining.losses.density import BANDWIDTH_SHARE, DensityLoss
from pretraining.views import Masking

Task = Literal["inpainting", "contrastive", "rotation"]
TASKS: tuple[Task, ...] = get_args(Task)
Strides = tuple[tuple[int, ...], ...]
Fusion = Literal["separate", "mean"]
SecondView = Literal["single_image", "paired"]
Partner = Literal["other_modality", "pseudo_pair"]
InpaintingHeadKind = Literal["linear", "pyramid", "network"]
ContrastiveLoss = Literal["nt_xent", "vicreg", "correlation", "adjusted_correlation"]
ComparedPlaces = Literal["all", "visible"]
DensityLevel = Literal["paired", "single_image", "stages"]
DENSITY_LEVELS: tuple[DensityLevel, ...] = get_args(DensityLevel)

# Groups of settings, in the order of the fields.
GROUPS = ("data", "network", "training", "losses", "run")
# Settings that are one or several of their choices.
LISTS_OF_CHOICES = ("modalities", "tasks", "density_levels")
# The weight of each loss.
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


def _about(group: str, explanation: str) -> dict[str, str]:
    """Metadata of a setting: the group and the help text of its option."""
    return {"group": group, "help": explanation}


@dataclass(frozen=True)
class Settings:
    """All settings with their defaults, not checked; :class:`Configuration` is what a run uses."""

    preset: str = field(
        default="base", metadata=_about("run", "preset that the run started from: its sizes and length")
    )
    recipe: str = field(default="swinfuse", metadata=_about("run", "recipe: what is learned, and how"))

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
    ct_intensities: Mapping[str, float] | None = field(
        default=None,
        metadata=_about(
            "data",
            "intensity properties that CT is normalised with, as in nnU-Net's plans; default: those of the body in the "
            "collection",
        ),
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
        metadata=_about("network", "largest number of cells (pooled blocks of tokens) in the DIM"),
    )
    dim_initial_scale: float = field(
        default=DomainInvarianceSettings.initial_scale,
        metadata=_about(
            "network", "factor on the DIM's last projection at the start; 0: the DIM starts as the identity"
        ),
    )
    dim_random_shift: bool = field(
        default=False,
        metadata=_about(
            "network",
            "in training, move the positions in the DIM of each crop by a random distance, so that the place within a "
            "crop cannot be learnt",
        ),
    )
    fusion: Fusion = field(
        default="separate",
        metadata=_about("network", "maps after the DIM: separate for CT and MR, or their mean as in the released code"),
    )
    second_view: SecondView = field(
        default="single_image",
        metadata=_about(
            "network",
            "how the second view of each crop passes through the DIM: single_image, as in fine-tuning, or paired: with "
            "the same partner as the first view",
        ),
    )
    partner: Partner = field(
        default="other_modality",
        metadata=_about(
            "network",
            "what the first view attends to in the DIM: the crop of the other modality, or (pseudo_pair) the crop "
            "itself in a random contrast; registered pairs always attend to each other",
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
    intact_second_views: float = field(
        default=0.5,
        metadata=_about(
            "losses",
            "probability that nothing is cut out of a second view without a partner, as nothing is in fine-tuning; "
            "something is cut out of every first view",
        ),
    )
    masking: Masking = field(
        default="cells", metadata=_about("losses", "cut out cells of a grid, or blocks of random size and position")
    )
    mask_cell: int = field(
        default=0,
        metadata=_about(
            "losses",
            "side of a cell in voxels, with --masking cells; 0: as large as a token of the deepest stage, halved until "
            "a crop has 8 cells",
        ),
    )
    complementary_masks: bool = field(
        default=True,
        metadata=_about("losses", "let a registered or pseudo-pair partner show only what is cut out of the crop"),
    )
    random_contrast: float = field(
        default=0.0, metadata=_about("losses", "probability that a view is rendered in a random contrast")
    )
    inpainting_head: InpaintingHeadKind = field(
        default="linear",
        metadata=_about(
            "losses",
            "linear: one linear layer per resolution; pyramid: convolutions that also see the embedding; network: the "
            "segmentation network's own stem, skips and decoder, which are then pretrained and transferred too",
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
        default="correlation",
        metadata=_about(
            "losses",
            "nt_xent: vectors of crops, with the other crops as negatives; vicreg: squared difference of features at "
            "the same place of two views, without negatives; correlation: the same relative to the variance of the "
            "features, which does not fall when they shrink; adjusted_correlation: relative to other crops at the same "
            "place, which does not fall either when features say only where in the crop they are",
        ),
    )
    compared_places: ComparedPlaces = field(
        default="visible",
        metadata=_about(
            "losses",
            "places that vicreg and the correlations compare: all, or those that are cut out of neither view",
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
            "where densities are matched: paired (DIM output for pairs), single_image (DIM output for single images), "
            "stages (deeper stages, single images)",
        ),
    )
    density_loss: DensityLoss = field(
        default="kde_jsd",
        metadata=_about(
            "losses", "loss of density matching: divergence of kernel densities, or an alternative to compare"
        ),
    )
    density_warmup_steps: int = field(
        default=5_000, metadata=_about("losses", "steps over which the weight of density matching rises from 0")
    )
    density_bandwidth: float = field(
        default=BANDWIDTH_SHARE,
        metadata=_about("losses", "width of the density's kernel, relative to the median distance of two tokens"),
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


def setting_choices() -> dict[str, tuple[str, ...]]:
    """The values that settings with a `Literal` type may have, by name; see also `LISTS_OF_CHOICES`."""
    choices: dict[str, tuple[str, ...]] = {}
    for name, kind in get_type_hints(Settings).items():
        if name in LISTS_OF_CHOICES:
            kind = get_args(kind)[0]
        if get_origin(kind) is Literal:
            choices[name] = get_args(kind)
    return choices
