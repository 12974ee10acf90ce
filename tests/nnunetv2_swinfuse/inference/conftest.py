"""Models as folders of JSON, and synthetic CT and MR volumes that their checks pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

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


@pytest.fixture(autouse=True)
def no_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the developer's own raw data."""
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)


@pytest.fixture
def ct_model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "ct_model")


@pytest.fixture
def mr_model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "mr_model", ("MR",))
