"""Settings of fine-tuning: one frozen dataclass, from the plans and from `SWINFUSE_*` variables."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nnunetv2_swinfuse.architecture.encoder_loading import CLAMPED_BIAS_VARIABLE, MERGING_VARIABLE
from nnunetv2_swinfuse.errors import SwinFUSEError
from nnunetv2_swinfuse.nnunet_names import ENCODER

PREFIX = "SWINFUSE_"
# Variables of the same prefix that are no settings of the optimisation.
OTHER_VARIABLES = frozenset({ENCODER, MERGING_VARIABLE, CLAMPED_BIAS_VARIABLE})
KINDS: dict[str, type] = {"float": float, "int": int, "int | None": int}
# Values of settings that did not exist yet when a model was trained.
BEFORE_SETTING_EXISTED = {"layer_decay": 1.0, "pretrained_decoder": 0}
# Peak learning rate of trainings that start from random weights; docs/method.md has the source and what was measured.
FROM_SCRATCH: Mapping[str, Any] = {"initial_lr": 3e-4}


class SettingsError(SwinFUSEError, ValueError):
    """A setting that does not exist, a value that is impossible, or another one than the model was trained with."""


@dataclass(frozen=True)
class FineTuningSettings:
    """How nnU-Net's trainer is changed for a pretrained transformer.

    Attributes:
        initial_lr: peak learning rate of AdamW, SwinFUSE's; nnU-Net's 1e-2 is for SGD and makes transformers diverge.
            Trainers that start from random weights have :data:`FROM_SCRATCH`.
        weight_decay: weight decay of AdamW, decoupled; norms, biases and position biases are left out. 0.05 is the Swin
            Transformer's own; pretraining's 0.1 would shrink the pretrained weights faster than the small rate learns.
        layer_decay: rate of each pretrained layer (patch embedding, DIM, each encoder stage) relative to the one after
            it; new layers have the full rate. 0.9 is what SimMIM fine-tunes Swin Transformers with; 1 is one rate.
        dim_scale: factor on what the Domain Invariance Module adds to its input, when fine-tuning starts. With 0 the
            module starts as the identity and its last projection anew, at the reduced rate of its layer; a frozen
            encoder keeps the factor.
        pretrained_decoder: 1 also takes stem, skips and decoder from an encoder file that has them, 0 starts them anew.
            Either way they are trained at the full rate, like new layers.
        linear_probe_epochs: number of epochs in which everything but the pretrained encoder is trained; afterwards all.
        warmup_epochs: epochs of linear warm-up; by default 5 % of the training, 50 at most.
        gradient_clip: largest norm of the gradient; nnU-Net's 12 comes before and does not bind.
        drop_path_rate: stochastic depth of the last Swin block, or of the last residual stage.
        random_contrast: share of the training patches that are rendered in a random contrast, each channel in its own,
            so that the network also segments images of another modality.
        iterations_per_epoch, validation_iterations_per_epoch: nnU-Net's 250 and 50.
    """

    initial_lr: float = 1e-4
    weight_decay: float = 0.05
    layer_decay: float = 0.9
    dim_scale: float = 1.0
    pretrained_decoder: int = 1
    linear_probe_epochs: int = 0
    warmup_epochs: int | None = None
    gradient_clip: float = 1.0
    drop_path_rate: float = 0.1
    random_contrast: float = 0.0
    iterations_per_epoch: int = 250
    validation_iterations_per_epoch: int = 50

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.type == "int | None":
                continue
            kind = KINDS[str(field.type)]
            accepted = (int, float) if kind is float else int
            if isinstance(value, bool) or not isinstance(value, accepted) or not math.isfinite(value):
                raise SettingsError(f"{field.name} is {value!r}; expected a finite {kind.__name__}")
        for name in ("initial_lr", "gradient_clip", "iterations_per_epoch", "validation_iterations_per_epoch"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("weight_decay", "dim_scale", "linear_probe_epochs", "warmup_epochs"):
            if (getattr(self, name) or 0) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 < self.layer_decay <= 1:
            raise SettingsError(f"layer_decay is {self.layer_decay}; expected more than 0 and at most 1")
        if self.pretrained_decoder not in (0, 1):
            raise SettingsError(f"pretrained_decoder is {self.pretrained_decoder}; expected 0 or 1")
        if not 0 <= self.random_contrast <= 1:
            raise SettingsError(f"random_contrast is {self.random_contrast}; expected between 0 and 1")
        if not 0 <= self.drop_path_rate < 1:
            raise SettingsError(f"drop_path_rate is {self.drop_path_rate}; expected at least 0 and less than 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for plans.json and checkpoints."""
        return asdict(self)

    def warmup_length(self, epochs: int) -> int:
        """Epochs of warm-up in a training of `epochs` epochs.

        Raises:
            SettingsError: when linear probing and warm-up together are as long as the training or longer.
        """
        if self.linear_probe_epochs >= epochs:
            raise SettingsError(
                f"linear_probe_epochs is {self.linear_probe_epochs}, the training has {epochs} epoch(s): the encoder "
                "would never be trained. Set fewer, or freeze it for good with -tr nnUNetTrainerSwinFUSEFrozen"
            )
        if self.warmup_epochs is None:
            return 0 if epochs == 1 else min(math.ceil(0.05 * epochs), 50)
        if self.linear_probe_epochs + self.warmup_epochs >= epochs:
            raise SettingsError(
                f"warmup_epochs is {self.warmup_epochs}, the training has {epochs} epoch(s)"
                + (f", {self.linear_probe_epochs} of them linear_probe_epochs" if self.linear_probe_epochs else "")
                + ": the peak learning rate would never be reached. Set fewer, or leave warmup_epochs out for 5 % of "
                "the training"
            )
        return self.warmup_epochs


def requested_settings(planned: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a user requests: the plan's `swinfuse.training` block, overridden by variables (`SWINFUSE_INITIAL_LR`...).

    Raises:
        SettingsError: naming a key or variable that is not known or not a number.
    """
    environment = os.environ if environment is None else environment
    known = {field.name: KINDS[str(field.type)] for field in fields(FineTuningSettings)}
    unknown = sorted(set(planned) - set(known))
    if unknown:
        raise SettingsError(f"plans: unknown keys {unknown} in 'swinfuse.training'; known are {sorted(known)}")
    requested = {name: value for name, value in planned.items() if value is not None}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in known:
            raise SettingsError(
                f"environment: {variable} is no setting; known are "
                f"{sorted(PREFIX + field.upper() for field in known)} and {sorted(OTHER_VARIABLES)}"
            )
        try:
            requested[name] = known[name](text)
        except ValueError:
            raise SettingsError(
                f"environment: {variable} is {text!r}; expected a {known[name].__name__}, such as "
                f"{getattr(FineTuningSettings(), name) or 10}"
            ) from None
    return requested


def recorded_settings(recorded: Mapping[str, Any], requested: Mapping[str, Any], plans: object) -> FineTuningSettings:
    """The settings that a model's folds were trained with; they hold for its further folds and for `--c`.

    Args:
        recorded: the `swinfuse.training` block of the model's plans.json.
        requested: what the user requests now; see :func:`requested_settings`.
        plans: that file, for the message.

    Raises:
        SettingsError: when the user requests something else now.
    """
    try:
        settings = FineTuningSettings(**{**BEFORE_SETTING_EXISTED, **recorded})
    except TypeError as error:
        raise SettingsError(f"{plans}: 'swinfuse.training' was written by another version ({error})") from error
    changed = [
        f"{name} is {value} now, {getattr(settings, name)} in {plans}"
        for name, value in requested.items()
        if value != getattr(settings, name)
    ]
    if changed:
        raise SettingsError(
            f"this model was trained with other settings: {'; '.join(changed)}. Its folds and continued trainings keep "
            f"them. Unset the {PREFIX}* variables (or the plan's swinfuse.training), or move the model folder away to "
            "start over"
        )
    return settings
