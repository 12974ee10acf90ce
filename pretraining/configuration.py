"""Every setting of a pretraining run: one frozen dataclass, filled from a preset and the command line, and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from typing import Any, Literal

from nnunetv2_swinfuse.architecture.domain_invariance import DomainInvarianceSettings
from nnunetv2_swinfuse.architecture.encoder import BACKBONES, Backbone, EncoderSettings
from nnunetv2_swinfuse.architecture.topology import Topology, check_patch_size
from pretraining.collections.collection import DOMAINS
from pretraining.errors import InputError
from pretraining.losses.density import DENSITY_LOSSES

TASKS = ("inpainting", "contrastive", "rotation")
# How much longer one side of a voxel may be than the other where the axial plane counts as isotropic.
PLANE_TOLERANCE = 0.05
Strides = tuple[tuple[int, ...], ...]

# Settings that may differ between a run and its continuation: they change neither the losses nor what is learnt.
FREE_ON_RESUME = frozenset(
    {"workers", "checkpoint_every", "validate_every", "validation_batches", "device", "tensorboard"}
)


@dataclass(frozen=True)
class Configuration:
    """Settings of a pretraining run. The defaults are the paper's and its released code's where they name a figure.

    Attributes:
        preset: name of the preset the run started from: its sizes and length.
        recipe: name of the recipe: what is learnt, and how.
        modalities: `CT`, `MR` or both; with one there is no pair, and images go through the module alone.
        tasks: proxy tasks; the losses of others are left out whatever their weights.
        crop_size: crop in voxels (z, y, x); divisible by the product of the strides; y equals x (rotations).
        strides: stride of each stage (z, y, x), as in an nnU-Net plan; the first is 1.
        batch_size: pairs of a CT and an MR crop in a step, over all processes; each gives two views.
        spacing: voxel spacing in mm (z, y, x); the collection's median when None.
        validation_share: share of the patients kept for validation.
        foreground_share: share of the crops that are centred on foreground.
        backbone: `swin`, or `resenc`, nnU-Net's residual encoder.
        feature_size, depths, num_heads, window_size, mlp_ratio: see :class:`EncoderSettings`.
        dim: `co_attention`, or `none` for the encoder without the Domain Invariance Module.
        dim_layers, dim_max_cells: layers of each of its blocks, cells attended over at most.
        fusion: `separate` or `mean` (the released reading), see :meth:`DomainInvariantEncoder.forward_pair`.
        single_share: share of the steps in which each image goes through the module alone, as in fine-tuning.
        drop_path_rate: stochastic depth.
        checkpointing: recompute Swin blocks, or residual stages, in the backward pass.
        init_from: an encoder file to begin from, SwinFUSE's or MONAI's; empty for random weights.
        monai_legacy_merging, monai_clamped_bias: see :class:`EncoderSettings`; set by what `init_from` holds.
        steps: optimiser steps; 0 publishes the encoder as it begins.
        warmup_steps: steps of linear warm-up, then cosine decay.
        learning_rate, weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
        temperature: of the contrastive loss.
        quarter_turns: whether crops are turned in the axial plane, for the rotation task and all others; left out by
            itself where the volumes' plane is not isotropic, see :meth:`for_spacing`.
        corrupted_share: share of a crop's voxels that is cut out.
        masking: `blocks` of any size and place, or `cells` of a grid, see :class:`ViewSettings`.
        mask_cell: voxels of a cell along each axis.
        visible_weight: of the inpainting loss on visible voxels, relative to cut-out ones.
        inpainting_weight, contrastive_weight, rotation_weight, density_weight: weights of the losses; 0 leaves one out.
        cross_modal_weight: of the contrastive loss between the CT and the MR of registered pairs, part of that task.
        density_loss: `kde_jsd`, or to compare with `mmd`, `coral` or `sliced_wasserstein`.
        density_warmup_steps: steps over which the density weight rises from 0.
        density_dimensions, density_samples: dimensions projected to, tokens per modality.
        seed: all randomness of a step is a function of this and the step.
        validate_every, validation_batches: steps between validations, batches in each.
        checkpoint_every: steps between checkpoints.
        workers: processes that load crops.
        tensorboard: write the records for TensorBoard as well.
        device: `cuda`, `cpu` or `auto`.
    """

    preset: str = "base"
    recipe: str = "swinfuse"
    modalities: tuple[str, ...] = DOMAINS
    tasks: tuple[str, ...] = TASKS
    crop_size: tuple[int, ...] = (96, 96, 96)
    strides: Strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    batch_size: int = 2
    spacing: tuple[float, float, float] | None = None
    validation_share: float = 0.1
    foreground_share: float = 0.67

    backbone: Backbone = EncoderSettings.backbone
    feature_size: int = EncoderSettings.feature_size
    depths: tuple[int, ...] = EncoderSettings.depths
    num_heads: tuple[int, ...] = EncoderSettings.num_heads
    window_size: int = EncoderSettings.window_size
    mlp_ratio: float = EncoderSettings.mlp_ratio
    dim: Literal["co_attention", "none"] = "co_attention"
    dim_layers: int = DomainInvarianceSettings.layers
    dim_max_cells: int = DomainInvarianceSettings.max_cells
    fusion: Literal["separate", "mean"] = "separate"
    single_share: float = 0.25
    drop_path_rate: float = 0.0
    checkpointing: bool = False
    init_from: str = ""
    monai_legacy_merging: bool = False
    monai_clamped_bias: bool = False

    steps: int = 100_000
    warmup_steps: int = 500
    learning_rate: float = 4e-4
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    temperature: float = 0.5
    quarter_turns: bool = True
    corrupted_share: float = 0.3
    masking: Literal["blocks", "cells"] = "blocks"
    mask_cell: int = 8
    visible_weight: float = 0.3
    inpainting_weight: float = 1.0
    contrastive_weight: float = 1.0
    cross_modal_weight: float = 1.0
    rotation_weight: float = 1.0
    density_weight: float = 1.0
    density_loss: Literal["kde_jsd", "mmd", "coral", "sliced_wasserstein"] = "kde_jsd"
    density_warmup_steps: int = 5_000
    density_dimensions: int = 8
    density_samples: int = 512

    seed: int = 0
    validate_every: int = 1_000
    validation_batches: int = 16
    checkpoint_every: int = 500
    workers: int = 4
    tensorboard: bool = False
    device: Literal["auto", "cuda", "cpu"] = "auto"

    def __post_init__(self) -> None:
        for name, known in (("modalities", DOMAINS), ("tasks", TASKS)):
            found = getattr(self, name)
            fine = not isinstance(found, str) and set(found) <= set(known) and len(set(found)) == len(found) > 0
            _require(fine, name, found, f"one or several of {list(known)}")
            object.__setattr__(self, name, tuple(value for value in known if value in found))
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
                "by quarters in that plane (--no-quarter_turns leaves that out, and with it the rotation task)"
            )
        if topology.convolution_strides:
            raise InputError(
                f"strides list {len(self.strides)} stages, but the encoder has patches and {len(self.depths)} Swin "
                f"stages; give at most {len(self.depths) + 2} strides"
            )
        if self.spacing is not None and (len(self.spacing) != 3 or min(self.spacing) <= 0):
            raise InputError(f"spacing is {list(self.spacing)}; expected three positive numbers, mm along z, y, x")
        for name in ("batch_size", "mask_cell", "validate_every", "validation_batches", "checkpoint_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        amounts = ("steps", "warmup_steps", "density_warmup_steps", "workers", "weight_decay", "seed", "visible_weight")
        for name in (*amounts, *LOSS_WEIGHTS.values()):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "gradient_clip", "temperature", "density_dimensions"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("validation_share", "foreground_share", "single_share", "drop_path_rate"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        _require(
            0 < self.corrupted_share < 1, "corrupted_share", self.corrupted_share, "between 0 and 1, both excluded"
        )
        _require(self.density_samples >= 2, "density_samples", self.density_samples, "at least 2")
        _require(
            any(self.loss_weight(task) for task in TASKS),
            f"the weight of {', '.join(self.tasks)}", 0, "more than 0 for one proxy task at least",
        )  # fmt: skip
        for name, allowed in CHOICES.items():
            _require(getattr(self, name) in allowed, name, getattr(self, name), f"one of {list(allowed)}")

    def _recipe_hint(self) -> str:
        """Sizes are those of the preset's backbone until a recipe brings another's."""
        mixed = self.backbone == "resenc" and len(self.num_heads) != 1
        return ". --recipe resenc sets nnU-Net's sizes" if mixed else ""

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
        """These settings for the volumes' spacing: without quarter turns where the axial plane is not isotropic.

        A quarter turn would exchange the spacings of y and x: the turn could be read off the distortion.

        Args:
            spacing: of the preprocessed volumes, mm (z, y, x).

        Raises:
            InputError: when rotation is the only task.
        """
        z, y, x = (float(distance) for distance in spacing)
        turned = self.quarter_turns and max(y, x) <= (1 + PLANE_TOLERANCE) * min(y, x)
        try:
            return replace(self, spacing=(z, y, x), quarter_turns=turned)
        except InputError as error:
            raise InputError(
                f"the volumes' spacing is {[round(float(s), 3) for s in spacing]} mm (z, y, x): quarter turns of a "
                f"plane that is not isotropic give themselves away, so there is no rotation task, and {error}. Give "
                "--spacing with equal y and x, or other --tasks"
            ) from error

    def loss_weight(self, loss: str) -> float:
        """The weight of `inpainting`, `contrastive`, `cross_modal`, `rotation` or `density`; 0 where it is left out."""
        if (loss in TASKS and loss not in self.tasks) or (loss == "rotation" and not self.quarter_turns):
            return 0.0
        # With the mean of both maps, CT and MR features are the same.
        apart = len(self.modalities) == len(DOMAINS) and self.fusion != "mean"
        if loss == "cross_modal" and not (self.loss_weight("contrastive") and apart):
            return 0.0
        return float(getattr(self, LOSS_WEIGHTS[loss]))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON and checkpoints."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "configuration") -> Configuration:
        """Raises InputError naming fields that are not known."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"{source}: unknown settings {unknown}; see swinfuse_pretrain --help for those there are")
        return cls(**values)


LOSS_WEIGHTS = {
    "inpainting": "inpainting_weight",
    "contrastive": "contrastive_weight",
    "cross_modal": "cross_modal_weight",
    "rotation": "rotation_weight",
    "density": "density_weight",
}
CHOICES: dict[str, tuple[str, ...]] = {
    "backbone": BACKBONES,
    "dim": ("co_attention", "none"),
    "fusion": ("separate", "mean"),
    "masking": ("blocks", "cells"),
    "density_loss": DENSITY_LOSSES,
    "device": ("auto", "cuda", "cpu"),
}


def preset_names() -> list[str]:
    """Names of the presets that come with the package: sizes and lengths."""
    return _names("presets")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package: what is learnt. Any goes with any preset."""
    return _names("presets/recipes")


def load_preset(name: str, recipe: str = "swinfuse") -> dict[str, Any]:
    """The settings that a preset and a recipe change, `preset` and `recipe` included.

    Raises:
        InputError: listing the presets or recipes there are.
    """
    settings = {**_load("presets", name, "preset"), **_load("presets/recipes", recipe, "recipe")}
    return {"preset": name, "recipe": recipe, **settings}


def _names(folder: str) -> list[str]:
    files = (resources.files("pretraining") / folder).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


def _load(folder: str, name: str, kind: str) -> dict[str, Any]:
    if name not in _names(folder):
        raise InputError(f"{kind} {name!r} is not known; there are {_names(folder)}")
    return json.loads((resources.files("pretraining") / folder / f"{name}.json").read_text())


def changed_settings(old: Configuration, new: Configuration) -> list[str]:
    """In words, the settings in which a continuation would differ from its run; empty when it may go on."""
    before, after = old.to_dict(), new.to_dict()
    return [
        f"{name}: {before[name]} in the run, {after[name]} now"
        for name in before
        if before[name] != after[name] and name not in FREE_ON_RESUME
    ]


def _require(holds: bool, name: str, found: object, expected: str) -> None:
    if not holds:
        raise InputError(f"{name} is {found}; expected {expected}")
