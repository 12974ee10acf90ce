"""The metadata of nnssl's checkpoints, so that tools for them can read encoder files of this package.

Fields: nnssl's `adaptation_planning/adaptation_plan.py` (AdaptationPlan, ArchitecturePlans) and
`experiment_planning/experiment_planners/plan.py` (Plan, ConfigurationPlan). Its keys name the parts of the network:
`patch_embed` is the stem, `encoder` all layers after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2_swinfuse.architecture.encoder import Backbone
from nnunetv2_swinfuse.architecture.registry import NETWORK_NAMES, plans_architecture
from nnunetv2_swinfuse.architecture.tensor_names import (
    ENCODER,
    PATCH_EMBEDDING,
    PATCH_WEIGHT,
    SECOND_NAME,
    STEM_WEIGHT,
)
from pretraining.configuration import Configuration

# Layers whose input is the image; dynamic-network-architectures registers the stem's convolution under two names.
IMAGE_PROJECTIONS: dict[Backbone, list[str]] = {
    "swin": [PATCH_WEIGHT.removesuffix(".weight")],
    "resenc": [STEM_WEIGHT.removesuffix(".weight"), f"{PATCH_EMBEDDING}convs.0{SECOND_NAME}0"],
}

# nnU-Net prints these, grouped by type, when it fine-tunes from a checkpoint.
CITATIONS = [
    {
        "type": "Pretraining Method",
        "name": "SwinFUSE",
        "apa_citations": [
            "Talasila, A., Maity, M., & Priyakumar, U. D. (2024). Self-Supervised Modality-Agnostic Pre-Training of "
            "Swin Transformers. arXiv:2405.12781."
        ],
    },
]


def adaptation_plan(
    configuration: Configuration, collection: Mapping[str, str], spacing: tuple[float, ...]
) -> dict[str, Any]:
    """nnssl's adaptation plan of an encoder, as plain values.

    `arch_kwargs` is None, as for all networks that nnssl knows by name: its reader accepts only those of convolutional
    networks. The arguments that build the network are stored in the encoder file under `architecture`, in the form of
    nnU-Net's plans.

    Args:
        configuration: settings of the run.
        collection: name and hash of the collection.
        spacing: spacing of the preprocessed volumes, mm (z, y, x).
    """
    interpolation = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "architecture_plans": {
            "arch_class_name": NETWORK_NAMES[configuration.backbone],
            "arch_kwargs": None,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": {
            "dataset_name": collection["name"],
            "plans_name": f"swinfuse__{configuration.preset}",
            "original_median_spacing_after_transp": [float(s) for s in spacing],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {
                "3d_fullres": {
                    "data_identifier": "swinfuse",
                    "preprocessor_name": "DefaultPreprocessor",
                    "spacing_style": "median",
                    # The plan has one channel; CT was normalised by CTNormalization (`normalisation` in the file).
                    "normalization_schemes": ["ZScoreNormalization"],
                    "use_mask_for_norm": [False],
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": interpolation,
                    "resampling_fn_mask": "resample_data_or_seg_to_shape",
                    "resampling_fn_mask_kwargs": {**interpolation, "is_seg": True, "order": 1},
                    "spacing": [float(s) for s in spacing],
                    "patch_size": [int(s) for s in configuration.crop_size],
                }
            },
            "experiment_planner_used": "swinfuse_pretrain",
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [int(s) for s in configuration.crop_size],
        "key_to_encoder": ENCODER.removesuffix("."),
        "key_to_stem": PATCH_EMBEDDING.removesuffix("."),
        "keys_to_in_proj": IMAGE_PROJECTIONS[configuration.backbone],
        "key_to_lpe": None,
    }


def encoder_details(
    configuration: Configuration,
    collection: Mapping[str, str],
    spacing: tuple[float, ...],
    network_settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Further keys of an encoder file: adaptation plan, citations, and the network as in nnU-Net's plans."""
    return {
        "nnssl_adaptation_plan": adaptation_plan(configuration, collection, spacing),
        "citations": CITATIONS,
        "architecture": plans_architecture(configuration.strides, configuration.encoder_settings, **network_settings),
    }
