"""Settings of fine-tuning: one frozen dataclass, from the plans and from `SWINFUSE_*` variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

PREFIX = "SWINFUSE_"
# Variables of the same prefix that are no settings of the optimisation.
OTHER_VARIABLES = frozenset({"SWINFUSE_CHECKPOINT"})


@dataclass(frozen=True)
class FineTuningSettings:
    """How nnU-Net's trainer is changed for a pretrained transformer.

    Attributes:
        initial_lr: peak learning rate of AdamW; nnU-Net's 1e-2 for SGD makes transformers diverge.
        weight_decay: of AdamW, decoupled; norms, biases and position biases are left out.
        warmup_share: share of the epochs in which the rate rises linearly, `warmup_epochs` at most.
        warmup_epochs: most epochs of warm-up.
        gradient_clip: largest norm of the gradient; nnU-Net's 12 comes before and does not bind.
        drop_path_rate: stochastic depth of the last Swin block.
        iterations_per_epoch, validation_iterations_per_epoch: nnU-Net's 250 and 50.
    """

    initial_lr: float = 1e-4
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    warmup_epochs: int = 50
    gradient_clip: float = 1.0
    drop_path_rate: float = 0.1
    iterations_per_epoch: int = 250
    validation_iterations_per_epoch: int = 50

    def __post_init__(self) -> None:
        for name in ("initial_lr", "gradient_clip", "iterations_per_epoch", "validation_iterations_per_epoch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("weight_decay", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("warmup_share", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0 and less than 1")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def resolve(cls, planned: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> FineTuningSettings:
        """Defaults, then the plan's `swinfuse.training` block, then variables such as `SWINFUSE_INITIAL_LR`.

        Raises:
            ValueError: naming a key or variable that is not known or not a number.
        """
        environment = os.environ if environment is None else environment
        known: dict[str, type] = {field.name: type(getattr(cls(), field.name)) for field in fields(cls)}
        unknown = sorted(set(planned) - set(known))
        if unknown:
            raise ValueError(f"plans: unknown keys {unknown} in 'swinfuse.training'; known are {sorted(known)}")
        changes = dict(planned)
        for variable, text in environment.items():
            if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
                continue
            name = variable.removeprefix(PREFIX).lower()
            if name not in known:
                raise ValueError(
                    f"environment: {variable} is no setting; known are "
                    f"{sorted(PREFIX + field.upper() for field in known)} and {sorted(OTHER_VARIABLES)}"
                )
            try:
                changes[name] = known[name](text)
            except ValueError:
                raise ValueError(
                    f"environment: {variable} is {text!r}; expected a {known[name].__name__}, such as "
                    f"{getattr(cls(), name)}"
                ) from None
        return replace(cls(), **changes)
