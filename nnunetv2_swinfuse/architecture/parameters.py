"""Which parameters decay: shared by pretraining and fine-tuning."""

from __future__ import annotations

from typing import Any

from torch import nn


def weight_decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: norms, biases and relative position biases have a size of their own and do not decay."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        decays = parameter.ndim > 1 and not name.endswith("relative_position_bias")
        (decayed if decays else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
