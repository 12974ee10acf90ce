"""MONAI's Swin UNETR from random weights in nnU-Net's training: the peer of the same kind of network."""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_swinfuse.errors import INSTALL_BENCHMARK, BenchmarkError
from nnunetv2_swinfuse.training.optimisation import WarmupPolynomial, build_optimizer
from nnunetv2_swinfuse.training.settings import FROM_SCRATCH, FineTuningSettings, requested_settings
from nnunetv2_swinfuse.training.trainer import unwrapped

# Five times halved: MONAI refuses other sizes.
MULTIPLE = 32


class PaddedSwinUNETR(nn.Module):
    """Swin UNETR for patches of any size: padded with zeros, the mean of normalised images, and cropped again."""

    def __init__(self, input_channels: int, output_channels: int, feature_size: int = 48) -> None:
        super().__init__()
        try:
            from monai.networks.nets import SwinUNETR
        except ImportError as error:
            raise BenchmarkError(f"MONAI is not installed: {INSTALL_BENCHMARK}") from error
        self.network = SwinUNETR(input_channels, output_channels, feature_size=feature_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, z, y, x) -> logits (B, classes, z, y, x)."""
        missing = [-size % MULTIPLE for size in x.shape[2:]]
        if max(x.shape[2:]) <= MULTIPLE:
            # A bottleneck of one voxel has nothing that instance normalisation could normalise.
            missing[-1] += MULTIPLE
        padding = [length for axis in reversed(missing) for length in (0, axis)]
        z, y, x_size = x.shape[2:]
        return self.network(nn.functional.pad(x, padding))[:, :, :z, :y, :x_size]


class nnUNetTrainerSwinUNETR(nnUNetTrainer):
    """Swin UNETR with the optimiser, schedule and settings of `nnUNetTrainerSwinFUSEScratch`; no deep supervision."""

    length = 1000

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        self.num_epochs = self.length
        self.settings = FineTuningSettings(**{**FROM_SCRATCH, **requested_settings({})})
        self.initial_lr = self.settings.initial_lr
        self.weight_decay = self.settings.weight_decay

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return PaddedSwinUNETR(num_input_channels, num_output_channels)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolynomial]:
        optimizer = build_optimizer(unwrapped(self.network), self.settings, {})
        warmup = self.settings.warmup_length(self.num_epochs)
        return optimizer, WarmupPolynomial(optimizer, self.num_epochs, warmup)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is nothing to switch."""
