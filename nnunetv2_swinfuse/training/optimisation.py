"""AdamW, warm-up and polynomial decay, gradient clipping, for use in nnU-Net's trainer as it is."""

from __future__ import annotations

import torch
from torch import nn

from nnunetv2_swinfuse.architecture.parameters import weight_decay_groups
from nnunetv2_swinfuse.training.settings import FineTuningSettings


class WarmupPolynomial:
    """Linear warm-up, then nnU-Net's polynomial decay (exponent 0.9); the rate is a function of the epoch alone.

    Nothing is to be saved: `nnUNetTrainer` calls `step(epoch)` at the start of every epoch, after a resume too. Each
    parameter group keeps the proportion that its `initial_lr` has to the others'.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, epochs: int, warmup_epochs: int):
        self.optimizer = optimizer
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def factor(self, epoch: int) -> float:
        """The share of the peak rate in an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return (epoch + 1) / (self.warmup_epochs + 1)
        progress = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1)
        return max(1 - progress, 0.0) ** 0.9

    def step(self, epoch: int) -> None:
        """Sets the rate of every group for an epoch, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(epoch)


def build_optimizer(network: nn.Module, settings: FineTuningSettings) -> torch.optim.AdamW:
    """AdamW that clips the gradient's norm in every step.

    nnU-Net's `train_step` unscales the gradients and calls the optimiser; clipping there, by a hook, leaves
    `train_step` as it is.
    """
    optimizer = torch.optim.AdamW(weight_decay_groups(network, settings.weight_decay), lr=settings.initial_lr)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def clip(*_: object) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)

    optimizer.register_step_pre_hook(clip)
    return optimizer
