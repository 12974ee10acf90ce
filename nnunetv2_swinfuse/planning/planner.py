"""`nnUNetPlannerSwinFUSE`: nnU-Net's planning, with the SwinFUSE network and its memory in place of nnU-Net's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import RESENC_PLANNING, RESENC_PLANS, plans_architecture
from nnunetv2_swinfuse.errors import SwinFUSEError
from nnunetv2_swinfuse.nnunet_names import CT_SCHEME, DATASET_FILE, FINGERPRINT_FILE, SWINFUSE_PLANS
from nnunetv2_swinfuse.planning.data_folders import share_data_folders
from nnunetv2_swinfuse.planning.memory import GIBIBYTE, estimate_step_memory
from nnunetv2_swinfuse.training.provenance import PROVENANCE_BLOCK, Provenance
from nnunetv2_swinfuse.training.settings import FineTuningSettings

# The configurations that a planner decides on; others in a plans file are a user's own.
PLANNED = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
# nnU-Net's name of what pretraining uses for MR.
Z_SCORE = "ZScoreNormalization"
# Full resolution, patch embedding, and one Swin stage.
MINIMUM_STAGES = 3


class PlanningError(SwinFUSEError, ValueError):
    """A dataset that cannot be planned as requested; the message says why and what to do."""


@dataclass(frozen=True)
class Preset:
    """A GPU to plan for, as nnU-Net's ResEnc presets.

    Attributes:
        gpu_memory_target_in_gb: memory that a training step may take.
        plans_name: different for each preset, so that one preset's plans do not replace another's.
    """

    gpu_memory_target_in_gb: float
    plans_name: str


PRESETS = {
    "M": Preset(8, SWINFUSE_PLANS),
    "L": Preset(24, "nnUNetSwinFUSELPlans"),
    "XL": Preset(40, "nnUNetSwinFUSEXLPlans"),
}


def check_fingerprint(dataset_name: str) -> None:
    """Raises PlanningError when a file that planning reads is missing."""
    raw = Path(nnUNet_raw.require()) / dataset_name / DATASET_FILE
    fingerprint = Path(nnUNet_preprocessed.require()) / dataset_name / FINGERPRINT_FILE
    if not raw.is_file():
        raise PlanningError(f"{raw}: no such file; planning reads the raw dataset's channels and labels from it")
    if not fingerprint.is_file():
        number = convert_dataset_name_to_id(dataset_name)
        raise PlanningError(
            f"{fingerprint}: no such file. Create it with nnUNetv2_extract_fingerprint -d {number}, or plan with "
            f"swinfuse_plan_and_preprocess -d {number}, which creates it when it is missing"
        )


def recorded_normalisation(encoder: Encoder | None) -> dict[str, Any]:
    """How pretraining normalised: intensities of the CT foreground, and whether MR was taken inside its nonzero mask.

    Raises:
        PlanningError: when the encoder's file does not record it.
    """
    recorded = {} if encoder is None else encoder.details.get("normalisation", {})
    if not {"ct", "mr_use_mask"} <= set(recorded):
        raise PlanningError(
            f"{'no encoder' if encoder is None else encoder.path}: it is not recorded how its volumes were normalised. "
            "Leave --normalisation_as_pretrained out, or pretrain with this version, which records it"
        )
    return dict(recorded)


def check_backbone(encoder: Encoder | None, dataset: str) -> None:
    """Refuses a residual encoder: its network is nnU-Net's, whose own planners know what memory it takes.

    Args:
        encoder: the encoder to plan for.
        dataset: numbers of the datasets, for the command in the message.

    Raises:
        PlanningError: with nnU-Net's command.
    """
    if encoder is not None and encoder.settings.backbone != "swin":
        raise PlanningError(
            f"{encoder.path} has the backbone {encoder.settings.backbone}, the encoder of nnU-Net's own ResEnc "
            f"plans; this planner is for Swin encoders. Plan with {RESENC_PLANNING.format(dataset)} and train with -tr "
            f"nnUNetTrainerSwinFUSE -p {RESENC_PLANS} (nnUNetPlannerResEncL, ...XL for more memory); or name a Swin "
            "encoder with -pretrained FILE"
        )


class nnUNetPlannerSwinFUSE(ExperimentPlanner):
    """Plans patch and batch size for `SwinFUSEUNet`; everything else is nnU-Net's default planner.

    Spacing, normalisation and resampling are the default's, so that preprocessed data are shared with `nnUNetPlans`.
    3d configurations get the network, with the sizes of the pretrained encoder. The 2d configuration keeps nnU-Net's
    own network and plan, for nnU-Net's own trainer: SwinFUSE is 3D.

    Args:
        dataset_name_or_id, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose: as in nnU-Net.
        gpu_memory_target_in_gb: peak memory of a training step (`torch.cuda.max_memory_allocated`), in GiB.
        encoder: the pretrained encoder, which gives the network its sizes; SwinFUSE's defaults when None.
        name_encoder: write the encoder's path into the plans, so that training starts from this very file.
        normalisation_as_pretrained: normalise CT channels with the intensities of the pretraining collection, and MR
            inside its nonzero mask if that was done there.

    Raises:
        PlanningError: when the target is too small for the network, the encoder does not say how it was normalised, or
            is of another backbone.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = PRESETS["M"].gpu_memory_target_in_gb,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = SWINFUSE_PLANS,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        *,
        encoder: Encoder | None = None,
        name_encoder: bool = False,
        normalisation_as_pretrained: bool = False,
    ):
        check_backbone(encoder, str(dataset_name_or_id))
        check_fingerprint(maybe_convert_to_dataset_name(dataset_name_or_id))
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        self.encoder = encoder
        self.name_encoder = name_encoder
        self.settings = EncoderSettings() if encoder is None else encoder.settings
        self.drop_path_rate = FineTuningSettings().drop_path_rate
        channels = self.dataset_json.get("channel_names", self.dataset_json.get("modality"))
        self.image_channels = [str(name) for name in channels.values()]
        self.pretrained_normalisation: dict[str, Any] = {}
        if normalisation_as_pretrained:
            self.pretrained_normalisation = recorded_normalisation(encoder)
            self._take_ct_intensities()

    @property
    def _preprocesses_as_stock(self) -> bool:
        return (
            self.overwrite_target_spacing is None
            and self.preprocessor_name == "DefaultPreprocessor"
            and not self.suppress_transpose
            and not self.pretrained_normalisation
        )

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """As nnU-Net; MR inside its nonzero mask where pretraining did so, if normalisation is as pretrained."""
        schemes, masks = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        if self.pretrained_normalisation:
            inside = bool(self.pretrained_normalisation["mr_use_mask"])
            masks = [inside if scheme == Z_SCORE else mask for scheme, mask in zip(schemes, masks, strict=True)]
        return schemes, masks

    def _take_ct_intensities(self) -> None:
        schemes, _ = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        properties = dict(self.dataset_fingerprint["foreground_intensity_properties_per_channel"])
        for index, scheme in enumerate(schemes):
            if scheme == CT_SCHEME:
                if not self.pretrained_normalisation["ct"]:
                    raise PlanningError(
                        f"{self.dataset_name}: channel {index} ({self.image_channels[index]}) is CT; the collection "
                        "that the encoder was pretrained on has none. Leave --normalisation_as_pretrained out"
                    )
                properties[str(index)] = dict(self.pretrained_normalisation["ct"])
        self.dataset_fingerprint["foreground_intensity_properties_per_channel"] = properties

    def swinfuse_architecture(
        self,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        spacing: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """The `architecture` block of a 3d configuration, as the trainer would write it."""
        return plans_architecture(
            [[int(s) for s in stride] for stride in strides],
            self.settings,
            kernel_sizes=[[int(k) for k in kernel] for kernel in kernel_sizes],
            spacing=spacing,
            drop_path_rate=self.drop_path_rate,
            **({} if self.encoder is None else self.encoder.network_settings),
        )

    def step_memory(self, arch_kwargs: Mapping[str, Any], patch_size: Sequence[int], batch_size: int) -> int:
        """Estimated peak bytes of a training step on this dataset."""
        return estimate_step_memory(
            arch_kwargs, patch_size, batch_size, len(self.image_channels), len(self.dataset_json["labels"])
        )

    def static_estimate_VRAM_usage(  # noqa: N802 - nnU-Net's own name; it calls it on self
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: Mapping[str, Any],
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """What nnU-Net compares with its reference: scaled so that the target is met at the smallest batch.

        Raises:
            PlanningError: when not even the smallest patch fits.
        """
        if len(patch_size) == 2:
            with torch.device("meta"):
                network = get_network_from_plans(
                    arch_class_name, arch_kwargs, arch_kwargs_req_import, input_channels, output_channels,
                    allow_init=False,
                )  # fmt: skip
            return network.compute_conv_feature_map_size(patch_size)
        patch = [int(size) for size in patch_size]
        if len(arch_kwargs["strides"]) < MINIMUM_STAGES:
            raise PlanningError(
                f"{self.dataset_name}: a patch of {' x '.join(map(str, patch))} voxels cannot be halved twice, which "
                f"the first Swin stage needs. Either the memory target of {self.UNet_vram_target_GB:g} GB is too "
                f"small for feature size {self.settings.feature_size}, or the images are too small at their spacing"
            )
        network_kwargs = self.swinfuse_architecture(arch_kwargs["strides"], arch_kwargs["kernel_sizes"])["arch_kwargs"]
        # nnU-Net shrinks the patch while estimate / reference_batch * 2 exceeds the reference.
        share = self.step_memory(network_kwargs, patch, self.UNet_min_batch_size) / self._target_bytes
        reference = self.UNet_reference_val_3d * self.UNet_vram_target_GB / self.UNet_reference_val_corresp_GB
        return share * reference * self.UNet_reference_val_corresp_bs_3d / self.UNet_min_batch_size

    @property
    def _target_bytes(self) -> float:
        return self.UNet_vram_target_GB * GIBIBYTE

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict[str, Any]:
        """As nnU-Net; a 3d configuration then gets the network and the largest batch that fits."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        patch_size = [int(size) for size in plan["patch_size"]]
        if len(patch_size) == 2:
            return plan
        stock_kwargs = plan["architecture"]["arch_kwargs"]
        plan["architecture"] = self.swinfuse_architecture(
            stock_kwargs["strides"], stock_kwargs["kernel_sizes"], plan["spacing"]
        )
        kwargs = plan["architecture"]["arch_kwargs"]
        coverage_limit = round(approximate_n_voxels_dataset * self.max_dataset_covered / math.prod(patch_size))
        smallest = self.step_memory(kwargs, patch_size, self.UNet_min_batch_size)
        sample_bytes = self.step_memory(kwargs, patch_size, self.UNet_min_batch_size + 1) - smallest
        fitting = self.UNet_min_batch_size + max(int((self._target_bytes - smallest) // sample_bytes), 0)
        batch_size = max(min(fitting, coverage_limit), self.UNet_min_batch_size)
        # The estimate is the higher of two peaks: from some batch on each sample may cost more than the first ones.
        while (
            batch_size > self.UNet_min_batch_size
            and self.step_memory(kwargs, patch_size, batch_size) > self._target_bytes
        ):
            batch_size -= 1
        plan["batch_size"] = batch_size
        planned = {
            "gpu_memory_target_in_gb": self.UNet_vram_target_GB,
            "estimated_memory_in_gb": round(self.step_memory(kwargs, patch_size, plan["batch_size"]) / GIBIBYTE, 2),
        }
        encoder = self.encoder.path if self.encoder is not None and self.name_encoder else None
        plan[PROVENANCE_BLOCK] = Provenance(encoder=encoder, planned=planned).to_dict()
        return plan

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Writes the plans with shared data folders; a user's own configurations in an older file are kept.

        Unlike nnU-Net, configurations that an earlier planning wrote and this one does not (a cascade) are not kept:
        their network may have other sizes.
        """
        recursive_fix_for_json_export(plans)
        folder = Path(nnUNet_preprocessed.require()) / self.dataset_name
        plans_file = folder / f"{self.plans_identifier}.json"
        if plans_file.is_file():
            old = json.loads(plans_file.read_text())["configurations"]
            plans["configurations"].update({name: block for name, block in old.items() if name not in PLANNED})
        share_data_folders(plans, folder, self._preprocesses_as_stock)
        with atomic_write(plans_file) as temporary:
            temporary.write_text(json.dumps(plans, indent=4))
        print(f"Plans were saved to {plans_file}")
