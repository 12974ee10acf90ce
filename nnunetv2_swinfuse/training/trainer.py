"""nnU-Net's trainer with the SwinFUSE network in its plans and a pretrained encoder in the network.

What stock nnU-Net reads later, plans.json and the checkpoints, names the network class and `nnUNetTrainer`: inference,
export and ensembling know nothing of the classes here.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_swinfuse.architecture.atomic_write import is_temporary
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.architecture.torch_file import save_torch_file
from nnunetv2_swinfuse.architecture.transfer import transfer_encoder
from nnunetv2_swinfuse.compatibility import nnunet_warning
from nnunetv2_swinfuse.errors import SwinFUSEError
from nnunetv2_swinfuse.plain_loading import load_plain, plain_values
from nnunetv2_swinfuse.training.augmentation import with_random_contrast
from nnunetv2_swinfuse.training.checkpoints import trained_folds
from nnunetv2_swinfuse.training.ct_intensities import ct_intensity_warning
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError, check_same_encoder, choose_encoder
from nnunetv2_swinfuse.training.fold_start import record_start, weights_digest
from nnunetv2_swinfuse.training.image_orientation import axis_directions, orientation_warnings
from nnunetv2_swinfuse.training.optimisation import WarmupPolynomial, build_optimizer
from nnunetv2_swinfuse.training.plans import plan_training
from nnunetv2_swinfuse.training.pretrained_part import (
    evaluate_frozen,
    little_used_warning,
    pretrained_layers,
    set_frozen,
)
from nnunetv2_swinfuse.training.processing import processing_of
from nnunetv2_swinfuse.training.provenance import PROVENANCE_BLOCK, Provenance
from nnunetv2_swinfuse.training.settings import FROM_SCRATCH
from nnunetv2_swinfuse.training.weight_changes import relative_changes

# Images of one dataset are mostly stored alike; reading what nnU-Net noted of one takes milliseconds.
IMAGES_LOOKED_AT = 50


class CheckpointError(SwinFUSEError, RuntimeError):
    """A checkpoint that cannot be read or written; the message names it and says what to do."""


class nnUNetTrainerSwinFUSE(nnUNetTrainer):
    """Fine-tunes a pretrained SwinFUSE encoder on any 3d configuration, with nnU-Net's own training.

    The configuration's `architecture` block is replaced before nnU-Net reads it; sizes come from the encoder, strides
    and kernels from the plan. Where the model folder already holds a trained fold, its plans.json decides instead.

    Raises:
        PlansError: for a 2d configuration, a plan that the network cannot be built from, or another spacing,
            normalisation, patch or the like than in a model that is partly trained.
        SettingsError: for unknown settings or values.
        EncoderChoiceError, EncoderFileError, TransferError: when there is no usable encoder.
        VersionError: for a model of a newer version of this package.
    """

    pretrained = True
    frozen = False
    length = 1000
    # Settings of fine-tuning that this trainer has unless the user asks for others.
    defaults: Mapping[str, Any] = {}
    network: nn.Module

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        # The caller's plans stay as they are: they may be used for another configuration.
        plans = deepcopy(plans)
        name = f"{type(self).__name__}__{plans['plans_name']}__{configuration}"
        model_folder = Path(nnUNet_results.require()) / plans["dataset_name"] / name
        planned = plan_training(plans, configuration, model_folder, self.pretrained, self.defaults)
        self.settings = planned.settings
        self.warmup_epochs = planned.settings.warmup_length(self.length)
        self.named_encoder = planned.named_encoder
        self.encoder = planned.encoder
        self.restoring = self.restored = False
        self.initial_digest: str | None = None
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.settings.initial_lr
        self.weight_decay = self.settings.weight_decay
        self.num_epochs = self.length
        self.num_iterations_per_epoch = self.settings.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.validation_iterations_per_epoch
        if warning := nnunet_warning():
            self.print_to_log_file(f"SwinFUSE: WARNING: {warning}")
        self.print_to_log_file(f"SwinFUSE: {planned.explanation}.")
        self.print_to_log_file(f"SwinFUSE: fine-tuning settings {json.dumps(self.settings.to_dict())}")
        if self.settings.linear_probe_epochs and (self.frozen or not self.pretrained):
            self.print_to_log_file(
                f"SwinFUSE: linear_probe_epochs has no effect: {type(self).__name__} "
                + ("never trains its encoder." if self.frozen else "has nothing pretrained.")
            )

    @property
    def provenance(self) -> Provenance:
        """The configuration's `swinfuse` block: encoder, collection, plugin version and settings."""
        return Provenance.from_dict(self.configuration_manager.configuration[PROVENANCE_BLOCK])

    def _set_provenance(self, provenance: Provenance) -> None:
        block = provenance.to_dict()
        self.configuration_manager.configuration[PROVENANCE_BLOCK] = block
        self.plans_manager.plans["configurations"][self.configuration_name][PROVENANCE_BLOCK] = block

    def _pretrained_layers(self) -> dict[str, int]:
        """Names of the pretrained parameters and the layer of each, counted from the image; empty without any."""
        stages = self.provenance.pretrained_stages
        return {} if stages is None else pretrained_layers(unwrapped(self.network), stages)

    @property
    def _image_channels(self) -> int:
        return len(self.dataset_json.get("channel_names", self.dataset_json.get("modality", {})))

    def initialize(self) -> None:
        """Builds everything as nnU-Net does, then loads the pretrained encoder, unless a checkpoint is loaded next."""
        encoder = self._encoder_to_transfer()
        # Tensors must not linger here: nnU-Net prints every attribute into debug.json.
        self.encoder = None
        super().initialize()
        if encoder is not None:
            decoder = bool(self.settings.pretrained_decoder)
            report = transfer_encoder(unwrapped(self.network), encoder, self._image_channels, decoder=decoder)
            self.print_to_log_file(
                f"SwinFUSE: encoder {encoder.path}, SHA-256 {encoder.sha256}, pretrained on "
                f"{encoder.collection.get('name', 'an unnamed collection')}"
            )
            self.print_to_log_file(str(report), add_timestamp=False)
            if report.little_used:
                self.print_to_log_file(f"SwinFUSE: WARNING: {little_used_warning(report, self.plans_manager.plans)}")
            self._compare_ct_intensities(encoder)
        if self.frozen and self.is_cascaded and unwrapped(self.network).settings.backbone == "resenc":
            self.print_to_log_file(
                "SwinFUSE: WARNING: a frozen residual encoder does not see the segmentation of the previous stage, so "
                "this cascade gains nothing from it. Train it with -tr nnUNetTrainerSwinFUSE"
            )
        if not self.restoring:
            self.initial_digest = weights_digest(unwrapped(self.network))

    def _scale_domain_invariance(self) -> None:
        """Once the weights to start from are there, also those of `-pretrained_weights`."""
        factor, module = self.settings.dim_scale, unwrapped(self.network).encoder.domain_invariance
        if factor == 1:
            return
        if module is None:
            self.print_to_log_file("SwinFUSE: dim_scale has no effect: the network has no Domain Invariance Module.")
            return
        module.scale_update(factor)
        self.print_to_log_file(
            f"SwinFUSE: what the Domain Invariance Module adds starts multiplied by {factor}"
            + (" and stays so, because this trainer never trains it." if self.frozen else ".")
        )

    def _encoder_to_transfer(self) -> Encoder | None:
        if self.restoring or not self.pretrained:
            return None
        if self.encoder is not None:
            return self.encoder
        # An earlier fold decided the network; this one must start with the same encoder.
        model_folder = Path(self.output_folder_base)
        if self.provenance.pretrained_weights and self._other_trained_folds():
            # The others started with -pretrained_weights; whether this one does too is known when training starts.
            return None
        encoder, _ = choose_encoder(self.named_encoder)
        check_same_encoder(self.provenance, encoder, model_folder, self.fold)
        architecture = self.configuration_manager.configuration["architecture"]
        self._set_provenance(self.provenance.with_encoder(encoder, architecture))
        return encoder

    def _other_trained_folds(self) -> list[str]:
        return [name for name in trained_folds(Path(self.output_folder_base)) if name != f"fold_{self.fold}"]

    def get_training_transforms(self, *arguments: Any, **options: Any) -> BasicTransform:
        """As nnU-Net's, which is static, with random contrasts where the settings ask for them."""
        transforms: BasicTransform = super().get_training_transforms(*arguments, **options)
        probability = self.settings.random_contrast
        return with_random_contrast(transforms, probability) if probability else transforms

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolynomial]:
        """AdamW with warm-up; the schedule is a function of the epoch, so there is nothing to resume."""
        optimizer = build_optimizer(unwrapped(self.network), self.settings, self._pretrained_layers())
        return optimizer, WarmupPolynomial(optimizer, self.num_epochs, self.warmup_epochs)

    def on_train_start(self) -> None:
        """As nnU-Net, after checking that this fold starts as the model's others did.

        Raises:
            EncoderChoiceError: when another fold started from something else.
        """
        if not self.was_initialized:
            self.initialize()
        if not self.restored:
            self._record_pretrained_weights()
            self._scale_domain_invariance()
            if self.local_rank == 0:
                block = self.configuration_manager.configuration
                processing = processing_of(self.plans_manager.plans, self.configuration_name)
                record_start(Path(self.output_folder_base), self.fold, block, processing)
        if self.local_rank == 0:
            # Checkpoints that a killed process has left half written.
            for temporary in filter(is_temporary, Path(self.output_folder).iterdir()):
                temporary.unlink(missing_ok=True)
        super().on_train_start()
        if self.local_rank == 0 and self._pretrained_layers():
            self._compare_orientation()

    def _compare_ct_intensities(self, encoder: Encoder) -> None:
        """Warns where the plans normalise CT otherwise than pretraining did."""
        plans = self.plans_manager
        warning = ct_intensity_warning(
            plans.foreground_intensity_properties_per_channel,
            self.configuration_manager.normalization_schemes,
            encoder.details.get("normalisation", {}).get("ct", {}),
            convert_dataset_name_to_id(plans.dataset_name),
        )
        if warning:
            self.print_to_log_file(f"SwinFUSE: WARNING: {warning}")

    def _compare_orientation(self) -> None:
        """Warns where images do not have the axes that the encoder was pretrained with, or are mirrored."""
        folder, transpose = self.preprocessed_dataset_folder, self.plans_manager.transpose_forward
        cases = sorted(self.dataset_class.get_identifiers(folder))[:IMAGES_LOOKED_AT]
        images = self.dataset_class(folder, cases)
        directions = (axis_directions(images.load_case(case)[3], transpose) for case in cases)
        # Along these axes nnU-Net's trainers also mirror as augmentation.
        mirrored = self.inference_allowed_mirroring_axes or ()
        for warning in orientation_warnings(directions, transpose, mirrored):
            self.print_to_log_file(f"SwinFUSE: WARNING: {warning}")

    def _record_pretrained_weights(self) -> None:
        """nnU-Net does not tell the trainer of `-pretrained_weights`: weights are compared with the initial ones."""
        digest = weights_digest(unwrapped(self.network))
        if digest != self.initial_digest:
            self._set_provenance(self.provenance.with_loaded_weights(digest))
            self.print_to_log_file(
                "SwinFUSE: other weights were loaded after the network was built, as -pretrained_weights does; all but "
                f"the segmentation heads have the SHA-256 {digest}. The published encoder is not used."
            )
        elif self.provenance.pretrained_weights:
            if others := self._other_trained_folds():
                raise EncoderChoiceError(
                    f"{self.output_folder_base}: {', '.join(others)} started with -pretrained_weights, fold "
                    f"{self.fold} without. Use the same file for all folds, or move the model folder away to start a "
                    "new cross-validation."
                )
            # The only fold starts again without them.
            self._set_provenance(replace(self.provenance, pretrained_weights=None))

    def on_train_end(self) -> None:
        """As nnU-Net; then the log says how far each pretrained part has moved."""
        super().on_train_end()
        if self.local_rank == 0 and not self.frozen and self._pretrained_layers():
            self._log_weight_changes()

    def _log_weight_changes(self) -> None:
        file = self.provenance.kept_encoder
        if file is None or self.provenance.pretrained_weights:
            return
        try:
            encoder = load_pretrained(file)
            if encoder.sha256 != self.provenance.encoder_sha256:
                raise ValueError(f"{file} is another encoder now")
            # Its settings may be others too: those of MONAI's weights depend on variables.
            changes = relative_changes(
                unwrapped(self.network),
                encoder,
                self._image_channels,
                self._pretrained_layers(),
                self.settings.dim_scale,
            )
        except ValueError as error:
            self.print_to_log_file(f"SwinFUSE: how far the pretrained weights have moved is not known: {error}")
            return
        self.print_to_log_file(
            "SwinFUSE: change of the pretrained weights, relative to their norm: "
            + ", ".join(f"{part} {change:.2g}" for part, change in changes.items())
        )

    def on_train_epoch_start(self) -> None:
        """As nnU-Net, with the pretrained part frozen or unfrozen as the epoch demands, after a resume too."""
        frozen = self.frozen or self.current_epoch < self.settings.linear_probe_epochs
        layers = self._pretrained_layers()
        if (layers or self.frozen) and set_frozen(unwrapped(self.network), layers, frozen):
            self.print_to_log_file(
                f"SwinFUSE: {len(layers)} pretrained tensors are {'frozen' if frozen else 'trained'} from epoch "
                f"{self.current_epoch} on."
            )
            network = self.network
            if isinstance(network, DistributedDataParallel):
                # DDP fixes on construction which gradients it waits for.
                self.network = DistributedDataParallel(network.module, device_ids=network.device_ids)
        super().on_train_epoch_start()
        if frozen:
            evaluate_frozen(unwrapped(self.network))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net; the network it initialises on the way needs no pretrained encoder.

        Raises:
            CheckpointError: for a file that is damaged or belongs to another network.
        """
        self.restoring = True
        try:
            if not self.was_initialized:
                self.initialize()
        finally:
            self.restoring = False
        try:
            super().load_checkpoint(filename_or_checkpoint)
            self.restored = True
        except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or ["no message"])[0]
            raise CheckpointError(
                f"{filename_or_checkpoint}: cannot be loaded ({type(error).__name__}: {reason}). It is damaged or "
                "belongs to another network. Restore it from a copy, or move it away: --c then resumes from "
                "checkpoint_latest.pth or checkpoint_best.pth of the same folder, or starts over."
            ) from error

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net, atomically, and so that stock nnU-Net loads it: the true trainer is recorded under `swinfuse`.

        Raises:
            CheckpointError: when it cannot be written; the previous checkpoint is left as it was.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        buffer.seek(0)
        # nnU-Net leaves numpy's numbers in the curves, which torch.load(weights_only=True) refuses elsewhere.
        checkpoint = plain_values(load_plain(buffer, str(filename)))
        checkpoint["trainer_name"] = nnUNetTrainer.__name__
        checkpoint[PROVENANCE_BLOCK] = {
            **self.provenance.to_dict(),
            "trainer": type(self).__name__,
            "fold": self.fold,
            "nnunetv2": version("nnunetv2"),
            "torch": str(torch.__version__),
        }
        try:
            save_torch_file(checkpoint, filename)
        except (OSError, RuntimeError) as error:
            free = shutil.disk_usage(self.output_folder).free / 1e9
            raise CheckpointError(
                f"{filename}: cannot be written ({error}); {free:.1f} GB are free there. The previous checkpoint is "
                "intact: free some space and resume with --c."
            ) from error


class nnUNetTrainerSwinFUSEFrozen(nnUNetTrainerSwinFUSE):
    """The pretrained tensors stay as they are, without stochastic depth; everything else is trained.

    It shows what pretraining is worth by itself, and needs less time and memory: no gradient goes through the encoder.
    """

    frozen = True


class nnUNetTrainerSwinFUSEScratch(nnUNetTrainerSwinFUSE):
    """The same network and training from random weights: what pretraining is compared with.

    It takes its sizes from the encoder that `nnUNetTrainerSwinFUSE` would use, so that both are the same network, and
    the defaults when there is none. Its peak learning rate is that of training from scratch, which is higher.
    """

    pretrained = False
    defaults = FROM_SCRATCH


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network
