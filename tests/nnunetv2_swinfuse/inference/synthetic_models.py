"""Models as folders of JSON, and synthetic CT and MR volumes that their checks pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture
from nnunetv2_swinfuse.inference.training_images import RECORD

SHAPE, SPACING = (20, 24, 28), (3.0, 2.0, 1.5)


def ct_voxels(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Air, fat and soft tissue in Hounsfield units."""
    generator = np.random.default_rng(seed)
    voxels = np.full(shape, -1000.0)
    voxels[2:-2, 3:-3, 3:-3] = -100
    voxels[4:-4, 6:-6, 6:-6] = 50
    return (voxels + generator.normal(0, 8, shape)).astype(np.int16)


def mr_voxels(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Magnitudes of arbitrary scale."""
    generator = np.random.default_rng(seed)
    voxels = np.zeros(shape)
    voxels[2:-2, 3:-3, 3:-3] = 300
    voxels[4:-4, 6:-6, 6:-6] = 700
    return np.abs(voxels + generator.normal(0, 20, shape)).astype(np.float32)


def write_image(
    path: Path,
    voxels: np.ndarray,
    spacing: tuple[float, ...] = SPACING,
    orientation: str = "LPS",
    direction: np.ndarray | None = None,
) -> Path:
    """Spacing and voxels in (z, y, x)."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing[::-1])
    image.SetDirection(
        sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(orientation)
        if direction is None
        else direction.ravel().tolist()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_model(
    folder: Path,
    channels: tuple[str, ...] = ("CT",),
    masked: bool = False,
    orientations: tuple[str, ...] | None = ("LPS",),
    intensities: dict[str, float] | None = None,
) -> Path:
    """The JSON files of a model that was trained on images of about SHAPE and SPACING."""
    folder.mkdir(parents=True)
    ct = {"min": -200.0, "percentile_00_5": -90.0, "median": 50.0, "percentile_99_5": 120.0, "max": 300.0}
    mr = {"min": 0.0, "percentile_00_5": 20.0, "median": 700.0, "percentile_99_5": 760.0, "max": 900.0}
    statistics = {str(n): intensities or (ct if name == "CT" else mr) for n, name in enumerate(channels)}
    fingerprint = {
        "spacings": [list(SPACING), [1.1 * s for s in SPACING]],
        "shapes_after_crop": [list(SHAPE), [22, 24, 30]],
        "foreground_intensity_properties_per_channel": statistics,
        "median_relative_size_after_cropping": 1.0,
    }
    plans = {
        "dataset_name": "Dataset900_Made",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "configurations": {
            "3d_fullres": {
                "normalization_schemes": ["CTNormalization" if n == "CT" else "ZScoreNormalization" for n in channels],
                "use_mask_for_norm": [masked] * len(channels),
            }
        },
    }
    dataset = {
        "channel_names": {str(n): name for n, name in enumerate(channels)},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ".nii.gz",
    }
    for name, content in (("plans", plans), ("dataset", dataset), ("dataset_fingerprint", fingerprint)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    if orientations is not None:
        record = {"format": "swinfuse-training-images", "format_version": 1}
        (folder / RECORD).write_text(json.dumps({**record, "orientations": dict.fromkeys(orientations, 1)}))
    return folder


PATCH = (16, 24, 24)
TRAINER = "nnUNetTrainerSwinFUSE"


def write_whole_model(
    results: Path,
    domain: str = "CT",
    folds: tuple[str, ...] = ("fold_0",),
    dataset: str = "Dataset900_Made",
    seed: int = 0,
) -> Path:
    """A model that stock nnU-Net runs: a tiny network with random weights, as our trainer would have left it."""
    folder = write_model(results / dataset / f"{TRAINER}__nnUNetPlans__3d_fullres", (domain,))
    settings = EncoderSettings(
        feature_size=12, depths=(1,), num_heads=(2,), window_size=3, domain_invariance={"layers": 1, "max_cells": 16}
    )
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    architecture = plans_architecture(strides, settings, kernel_sizes=[[3, 3, 3]] * 3)
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    block = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PATCH),
        "spacing": list(SPACING),
        "normalization_schemes": ["CTNormalization" if domain == "CT" else "ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": resampling for what in ("data", "probabilities")},
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "architecture": architecture,
        "batch_dice": False,
        "swinfuse": {"plugin": "0.1.0", "encoder": "/home/alice/encoder.pth", "encoder_sha256": "0" * 64},
    }
    statistics = json.loads((folder / "dataset_fingerprint.json").read_text())
    intensities = statistics["foreground_intensity_properties_per_channel"]
    for channel in intensities.values():
        channel.update(mean=20.0, std=80.0)
    plans = {
        "dataset_name": dataset,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": intensities,
        "configurations": {"3d_fullres": block},
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    files = {"file list": ["imagesTr/Doe_John_0000.nii.gz"]}
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "dataset": files, "licence": "CC0"}))
    for number, fold in enumerate(folds):
        torch.manual_seed(seed + number)
        network = build_network(architecture, 1, 2)
        # Random logits near zero would make one class win everywhere.
        with torch.no_grad():
            for head in network.decoder.seg_layers:
                head.weight.mul_(20)
        checkpoint = {
            "network_weights": network.state_dict(),
            "optimizer_state": {"state": {0: torch.zeros(1000)}},
            "logging": {"train_losses": [np.float64(0.5)], "epoch_start_timestamps": [1.0]},
            "current_epoch": 7,
            "init_args": {"configuration": "3d_fullres", "fold": number, "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1),
            "swinfuse": {"trainer": TRAINER, "encoder": "/home/alice/encoder.pth", "collection": {"name": "Made"}},
        }
        (folder / fold / "validation").mkdir(parents=True)
        torch.save(checkpoint, folder / fold / "checkpoint_final.pth")
        metrics = {"Dice": 0.875 + 0.05 * number, "IoU": 0.8}
        case = {"metrics": {"1": metrics}, "prediction_file": "/data/Doe_John.nii.gz"}
        summary = {"foreground_mean": metrics, "mean": {"1": metrics}, "metric_per_case": [case]}
        (folder / fold / "validation" / "summary.json").write_text(json.dumps(summary))
    return folder
