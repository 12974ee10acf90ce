"""Which parameters decay: shared by pretraining and fine-tuning."""

from __future__ import annotations

from typing import Any

from torch import nn


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: not to norms, biases and relative position biases."""
    return parameter.ndim > 1 and not name.endswith("relative_position_bias")


def weight_decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: parameters with weight decay, then those without."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (decayed if decays(name, parameter) else undecayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
