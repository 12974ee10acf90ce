"""AdamW, warm-up and polynomial decay, layer-wise rates, gradient clipping, for use in nnU-Net's trainer as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nnunetv2_swinfuse.architecture.weight_decay import decays
from nnunetv2_swinfuse.training.settings import FineTuningSettings


class WarmupPolynomial:
    """Linear warm-up, then nnU-Net's polynomial decay (exponent 0.9); the rate is a function of the epoch only.

    Nothing is to be saved: `nnUNetTrainer` calls `step(epoch)` at the start of every epoch, after a resume too. Each
    parameter group keeps the proportion that its `initial_lr` has to the others'. Groups with a `first_epoch` are at
    rest before it, then warm up as the others did.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, epochs: int, warmup_epochs: int):
        self.optimizer = optimizer
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def factor(self, epoch: int, first_epoch: int = 0) -> float:
        """The share of the peak rate in an epoch, counted from 0, of a group that trains from `first_epoch` on."""
        if epoch < first_epoch:
            return 0.0
        warmup = min((epoch - first_epoch + 1) / (self.warmup_epochs + 1), 1.0)
        progress = max(epoch - self.warmup_epochs, 0) / max(self.epochs - self.warmup_epochs, 1)
        return warmup * max(1 - progress, 0.0) ** 0.9

    def step(self, epoch: int) -> None:
        """Sets the rate of every group for an epoch, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(epoch, group.get("first_epoch", 0))


def parameter_groups(
    network: nn.Module, settings: FineTuningSettings, pretrained: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Groups for AdamW: new parameters at the full rate first, then the pretrained from the deepest layer down.

    A pretrained layer's rate is `layer_decay` times that of the layer after it, the deepest one's that of the new
    parameters (Clark et al., arXiv 2003.10555). Norms, biases and position biases are in groups without weight decay.

    Args:
        network: the network; all of its parameters come into one group each.
        settings: rates and decays.
        pretrained: names of the pretrained parameters and their layers, 0 being next to the image.
    """
    if settings.layer_decay == 1 and not settings.linear_probe_epochs:
        pretrained = {}
    depth = max(pretrained.values(), default=-1) + 1
    by_layer: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        by_layer[depth - pretrained.get(name, depth), not decays(name, parameter)].append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.initial_lr * settings.layer_decay**distance,
            "weight_decay": 0.0 if undecayed else settings.weight_decay,
            "first_epoch": settings.linear_probe_epochs if distance else 0,
        }
        for (distance, undecayed), parameters in sorted(by_layer.items())
    ]


def build_optimizer(
    network: nn.Module, settings: FineTuningSettings, pretrained: Mapping[str, int] | None = None
) -> torch.optim.AdamW:
    """AdamW that clips the gradient's norm in every step; see :func:`parameter_groups`.

    nnU-Net's `train_step` unscales the gradients and calls the optimiser; clipping there, by a hook, leaves
    `train_step` as it is. Frozen parameters have no gradient: they are neither clipped, nor stepped, nor decayed.
    """
    optimizer = torch.optim.AdamW(parameter_groups(network, settings, pretrained or {}), lr=settings.initial_lr)
    parameters = list(network.parameters())

    def clip(*_: object) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)

    optimizer.register_step_pre_hook(clip)
    return optimizer
