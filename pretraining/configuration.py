"""The configuration of a pretraining run: settings that are valid together, and what follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from nnunetv2_swinfuse.architecture.domain_invariance import DomainInvarianceSettings
from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.topology import Topology, Triple, check_patch_size
from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import DOMAINS
from pretraining.mask_cells import automatic_cell, cells_along_axes, cells_to_cut_out
from pretraining.preprocessed.turnable import is_isotropic_plane
from pretraining.settings import LISTS_OF_CHOICES, LOSS_WEIGHTS, TASKS, Settings, setting_choices

# Settings that may differ when a run is resumed: they change neither the losses nor what is learned.
FREE_ON_RESUME = frozenset(
    {"workers", "checkpoint_every", "validate_every", "validation_batches", "device", "tensorboard"}
)
AT_LEAST_ONE = ("batch_size", "validate_every", "validation_batches", "checkpoint_every")
NOT_NEGATIVE = (
    "steps",
    "warmup_steps",
    "density_warmup_steps",
    "workers",
    "weight_decay",
    "seed",
    "mask_cell",
    "visible_weight",
    "dim_initial_scale",
    *LOSS_WEIGHTS.values(),
)
# Of one channel in nnU-Net's plans (`foreground_intensity_properties_per_channel`).
INTENSITY_PROPERTIES = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")
POSITIVE = ("learning_rate", "gradient_clip", "temperature", "density_bandwidth", "density_dimensions")
# What runs did before there were these settings, whose records lack them.
BEFORE: dict[str, Any] = {"intact_second_views": 0.0, "compared_places": "all"}
SHARES = ("validation_share", "foreground_share", "random_contrast", "drop_path_rate", "intact_second_views")


@dataclass(frozen=True)
class Configuration(Settings):
    """Settings of a run, checked on construction.

    Raises:
        InputError: naming the setting, its value and what was expected.
    """

    def __post_init__(self) -> None:
        self._check_choices()
        self._convert_lists()
        self._check_shapes()
        self._check_numbers()
        self._check_masking()
        self._check_ct_intensities()
        self._check_losses()

    def _check_choices(self) -> None:
        for name, choices in setting_choices().items():
            value = getattr(self, name)
            if name not in LISTS_OF_CHOICES:
                _require(value in choices, name, value, f"one of {list(choices)}")
                continue
            valid = not isinstance(value, str) and set(value) <= set(choices) and len(set(value)) == len(value) > 0
            _require(valid, name, value, f"one or several of {list(choices)}")
            object.__setattr__(self, name, tuple(choice for choice in choices if choice in value))

    def _convert_lists(self) -> None:
        """Lists, as JSON and the command line have them, become tuples."""
        for name in ("crop_size", "depths", "num_heads", "spacing"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        object.__setattr__(self, "strides", tuple(tuple(int(s) for s in stride) for stride in self.strides))

    def _check_shapes(self) -> None:
        """Strides, stages, crop and spacing."""
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

    def _check_numbers(self) -> None:
        for name in AT_LEAST_ONE:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in NOT_NEGATIVE:
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in POSITIVE:
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in SHARES:
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        _require(
            0 < self.corrupted_share < 1, "corrupted_share", self.corrupted_share, "between 0 and 1, both excluded"
        )
        _require(self.density_samples >= 2, "density_samples", self.density_samples, "at least 2")
        if self.contrastive_loss == "adjusted_correlation":
            needed = "at least 2 for adjusted_correlation, which compares crops of a batch (--contrastive_loss)"
            _require(self.batch_size >= 2, "batch_size", self.batch_size, needed)

    def _check_masking(self) -> None:
        """A part of every crop is cut out, and a part stays."""
        if self.masking != "cells":
            return
        grid = cells_along_axes(self.crop_size, self.mask_cells)
        cells, cut_out = math.prod(grid), cells_to_cut_out(self.corrupted_share, grid)
        if not 0 < cut_out < cells:
            raise InputError(
                f"corrupted_share is {self.corrupted_share}: of a crop of {list(self.crop_size)} voxels, in cells of "
                f"{list(self.mask_cells)} voxels (z, y, x), that are {cut_out} of its {cells} cells; expected at least "
                "one that is cut out and one that stays. Set a smaller --mask_cell (0: chosen for the crop), a larger "
                "--crop_size or another --corrupted_share"
            )

    def _check_ct_intensities(self) -> None:
        properties = self.ct_intensities
        if properties is None:
            return
        try:
            values = {name: float(properties[name]) for name in INTENSITY_PROPERTIES}
            usable = values["std"] > 0 and values["percentile_00_5"] < values["percentile_99_5"]
        except (KeyError, TypeError, ValueError):
            usable = False
        _require(
            usable and all(map(math.isfinite, values.values())), "ct_intensities", properties,
            f"numbers for {', '.join(INTENSITY_PROPERTIES)}, with std above 0 and the percentiles in order",
        )  # fmt: skip
        object.__setattr__(self, "ct_intensities", values)

    def _check_losses(self) -> None:
        """Losses, and settings that are possible only together."""
        _require(
            self.contrastive_loss == "nt_xent" or not self.loss_weight("contrastive") or self.variance_weight > 0,
            "variance_weight", self.variance_weight,
            f"more than 0 with --contrastive_loss {self.contrastive_loss}: nothing else keeps features from collapsing",
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
        _require(
            any(self.loss_weight(task) for task in TASKS),
            f"the weight of {', '.join(self.tasks)}", 0, "more than 0 for one proxy task at least",
        )  # fmt: skip

        single_images = not self.pairs_views or self.second_view == "single_image"
        levels = {"paired": self.pairs_views, "single_image": single_images, "stages": True}
        _require(
            not self.loss_weight("density") or any(levels[level] for level in self.density_levels),
            "density_levels", list(self.density_levels),
            f"one of {[level for level, there_is in levels.items() if there_is]}, as no other tokens are computed with "
            "this DIM and second view; or --density_weight 0",
        )  # fmt: skip
        _require(
            self.inpainting_head != "network" or self.loss_weight("inpainting") > 0,
            "inpainting_head", self.inpainting_head,
            "another without the inpainting loss: the network's decoder would be published untrained",
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
        return automatic_cell(self.crop_size, self.topology.downsampling)

    @property
    def topology(self) -> Topology:
        return self.encoder_settings.topology(self.strides)

    @property
    def encoder_settings(self) -> EncoderSettings:
        invariance = DomainInvarianceSettings(self.dim_layers, self.dim_max_cells, initial_scale=self.dim_initial_scale)
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
            spacing: spacing of the preprocessed volumes, mm (z, y, x).

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

    @classmethod
    def of_run(cls, values: Mapping[str, Any], source: str) -> Configuration:
        """The settings that a run recorded; raises InputError naming unknown settings.

        Settings that the run's version did not have are what it did, not today's defaults: a resumed run keeps its
        objective.
        """
        return cls.from_dict({**BEFORE, **values}, source)


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
