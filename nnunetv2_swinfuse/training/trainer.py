"""nnU-Net's trainer with the SwinFUSE network in its plans and a pretrained encoder in the network.

What stock nnU-Net reads later, plans.json and the checkpoints, names the network class and `nnUNetTrainer`: inference,
export and ensembling know nothing of the classes here.
"""

from __future__ import annotations

import io
import json
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder, load_encoder, save_atomically
from nnunetv2_swinfuse.architecture.topology import check_patch_size, plan_topology
from nnunetv2_swinfuse.architecture.transfer import transfer_encoder
from nnunetv2_swinfuse.architecture.unet import NETWORK_CLASS_NAME, plans_architecture
from nnunetv2_swinfuse.training.encoder_choice import check_same_encoder, choose_encoder, find_encoder, trained_plans
from nnunetv2_swinfuse.training.optimisation import WarmupPolynomial, build_optimizer, warmup_length
from nnunetv2_swinfuse.training.settings import FineTuningSettings


class nnUNetTrainerSwinFUSE(nnUNetTrainer):
    """Fine-tunes a pretrained SwinFUSE encoder on any 3d configuration, with nnU-Net's own training.

    The configuration's `architecture` block is replaced before nnU-Net reads it; sizes come from the encoder, strides
    and kernels from the plan. Where the model folder already holds a trained fold, its plans.json decides instead.

    Raises:
        ValueError: for a 2d configuration or a plan that the network cannot be built from.
        EncoderChoiceError, EncoderFileError, TransferError: when there is no usable encoder.
    """

    pretrained = True
    length = 1000

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        plans = deepcopy(plans)
        trained = self._trained_block(plans, configuration)
        self.settings, self.planned = plan_swinfuse(plans, configuration, trained, self.pretrained)
        self.trained_before = trained is not None
        self.restoring = False
        self.provenance: dict[str, Any] = {}
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.settings.initial_lr
        self.weight_decay = self.settings.weight_decay
        self.num_epochs = self.length
        self.num_iterations_per_epoch = self.settings.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.validation_iterations_per_epoch
        self.provenance = dict(self.configuration_manager.configuration["swinfuse"])
        self.print_to_log_file(f"SwinFUSE {json.dumps(self.provenance)}", also_print_to_console=False)

    @classmethod
    def _trained_block(cls, plans: dict, configuration: str) -> dict | None:
        """The configuration of this model's plans.json, if a fold of it has been trained."""
        if not nnUNet_results.is_set():
            return None
        name = f"{cls.__name__}__{plans['plans_name']}__{configuration}"
        path = trained_plans(Path(nnUNet_results) / plans["dataset_name"] / name)
        if path is None:
            return None
        block = json.loads(path.read_text())["configurations"].get(configuration, {})
        return block if "swinfuse" in block else None

    def initialize(self) -> None:
        """Builds everything as nnU-Net does, then fills in the pretrained encoder, unless a checkpoint follows."""
        super().initialize()
        if not self.pretrained or self.restoring:
            return
        encoder = choose_encoder(self.planned)
        if self.trained_before:
            check_same_encoder(self.provenance, encoder, Path(self.output_folder_base))
        image_channels = len(self.dataset_json.get("channel_names", self.dataset_json.get("modality", {})))
        report = transfer_encoder(unwrapped(self.network), encoder, image_channels)
        self.print_to_log_file(f"Encoder {encoder.path}, SHA-256 {encoder.sha256}, pretrained on {encoder.collection}")
        self.print_to_log_file(str(report), add_timestamp=False)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolynomial]:
        """AdamW with warm-up; the schedule is a function of the epoch, so there is nothing to resume."""
        optimizer = build_optimizer(self.network, self.settings)
        warmup = warmup_length(self.settings, self.num_epochs)
        return optimizer, WarmupPolynomial(optimizer, self.num_epochs, warmup)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net; the network it initialises on the way needs no pretrained encoder."""
        self.restoring = True
        try:
            super().load_checkpoint(filename_or_checkpoint)
        finally:
            self.restoring = False

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net, atomically, and so that stock nnU-Net loads it: the true trainer is recorded under `swinfuse`."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        buffer.seek(0)
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint["trainer_name"] = nnUNetTrainer.__name__
        checkpoint["swinfuse"] = {
            **self.provenance,
            "trainer": type(self).__name__,
            "fold": self.fold,
            "nnunetv2": version("nnunetv2"),
            "torch": str(torch.__version__),
        }
        save_atomically(checkpoint, filename)


class nnUNetTrainerSwinFUSEScratch(nnUNetTrainerSwinFUSE):
    """The same network and training from random weights: what pretraining is compared with.

    It takes its sizes from the encoder that `nnUNetTrainerSwinFUSE` would use, so that both are the same network, and
    the defaults when there is none.
    """

    pretrained = False


def plan_swinfuse(
    plans: dict, configuration: str, trained: dict | None, pretrained: bool
) -> tuple[FineTuningSettings, dict[str, Any]]:
    """Writes architecture and provenance of a configuration into plans, in place.

    Args:
        plans: nnU-Net's plans.
        configuration: name of the configuration, such as 3d_fullres.
        trained: the configuration as the model's folds were trained with, which then decides; else None.
        pretrained: whether an encoder must be there.

    Returns:
        The settings of fine-tuning, and the `swinfuse` block as it was planned.

    Raises:
        ValueError: for a 2d configuration or an impossible plan.
        EncoderChoiceError, EncoderFileError: when an encoder is needed and there is no usable one.
    """
    resolved = PlansManager({k: v for k, v in plans.items() if k != "continue_training"}).get_configuration(
        configuration
    )
    if len(resolved.patch_size) != 3:
        raise ValueError(
            f"configuration {configuration} has the patch size {resolved.patch_size}: SwinFUSE is for 3d configurations. "
            "Use 3d_fullres or 3d_lowres, or nnU-Net's own trainer for 2d."
        )
    planned = dict(resolved.configuration.get("swinfuse", {}))
    settings = FineTuningSettings.resolve(planned.get("training", {}))
    block = plans["configurations"][configuration]
    if trained is not None:
        block["architecture"] = trained["architecture"]
        block["swinfuse"] = {**trained["swinfuse"], "training": settings.to_dict()}
        return settings, planned
    encoder = _encoder_for(planned, pretrained)
    architecture = resolved.configuration["architecture"]["arch_kwargs"]
    encoder_settings = EncoderSettings() if encoder is None else encoder.settings
    if resolved.network_arch_class_name == NETWORK_CLASS_NAME:
        # Plans that were made for this network keep their own sizes.
        block["architecture"] = deepcopy(resolved.configuration["architecture"])
        block["architecture"]["arch_kwargs"]["drop_path_rate"] = settings.drop_path_rate
    else:
        block["architecture"] = plans_architecture(
            architecture["strides"],
            encoder_settings,
            kernel_sizes=architecture.get("kernel_sizes"),
            drop_path_rate=settings.drop_path_rate,
        )
    strides = block["architecture"]["arch_kwargs"]["strides"]
    check_patch_size(resolved.patch_size, plan_topology(strides, len(encoder_settings.depths)))
    block["swinfuse"] = {
        **planned,
        "plugin": version("nnunetv2-swinfuse"),
        "training": settings.to_dict(),
        "pretrained": pretrained,
    }
    if encoder is not None:
        block["swinfuse"] |= {
            ("encoder" if pretrained else "sizes_from"): encoder.path,
            **(
                {
                    "encoder_sha256": encoder.sha256,
                    "encoder_source": encoder.source,
                    "collection": encoder.collection,
                }
                if pretrained
                else {}
            ),
        }
    return settings, planned


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def _encoder_for(planned: dict[str, Any], pretrained: bool) -> Encoder | None:
    if pretrained:
        return choose_encoder(planned)
    found = find_encoder(planned)
    return None if found is None else load_encoder(found[0])
