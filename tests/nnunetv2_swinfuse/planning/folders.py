"""Fingerprints as nnU-Net's extractor writes them, without images: planning reads nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_swinfuse.planning.planner import nnUNetPlannerSwinFUSE

INTENSITIES = {
    "max": 3000.0,
    "mean": 100.0,
    "median": 90.0,
    "min": -1000.0,
    "percentile_00_5": -900.0,
    "percentile_99_5": 1500.0,
    "std": 200.0,
}


@dataclass(frozen=True)
class Folders:
    """nnU-Net's three folders."""

    raw: Path
    preprocessed: Path
    results: Path

    def fingerprint(
        self,
        shape: Sequence[int],
        spacing: Sequence[float],
        cases: int = 200,
        channels: Sequence[str] = ("MR",),
        number: int = 901,
    ) -> str:
        """A dataset of equal cases (z, y, x); only one tiny image exists, from which nnU-Net takes the reader."""
        name = f"Dataset{number}_Synthetic"
        folder = self.raw / name
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
        for channel in range(len(channels)):
            image = sitk.GetImageFromArray(np.zeros((4, 4, 4), np.float32))
            sitk.WriteImage(image, str(folder / "imagesTr" / f"a_{channel:04d}.nii.gz"))
        files = {
            "images": [f"imagesTr/a_{channel:04d}.nii.gz" for channel in range(len(channels))],
            "label": "labelsTr/a.nii.gz",
        }
        content = {
            "channel_names": {str(i): channel for i, channel in enumerate(channels)},
            "labels": {"background": 0, "organ": 1},
            "numTraining": cases,
            "file_ending": ".nii.gz",
            "dataset": {"a": files},
        }
        (folder / "dataset.json").write_text(json.dumps(content))
        (self.preprocessed / name).mkdir()
        fingerprint = {
            "spacings": [list(spacing)] * cases,
            "shapes_after_crop": [list(shape)] * cases,
            "foreground_intensity_properties_per_channel": {str(i): INTENSITIES for i in range(len(channels))},
            "median_relative_size_after_cropping": 1.0,
        }
        (self.preprocessed / name / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        return name

    def plans(self, name: str, plans_name: str = "nnUNetSwinFUSEPlans") -> dict[str, Any]:
        return json.loads((self.preprocessed / name / f"{plans_name}.json").read_text())

    def plan(self, name: str, memory: float = 8, **arguments: Any) -> dict[str, Any]:
        """Plans a dataset and reads what was written."""
        planner = nnUNetPlannerSwinFUSE(name, memory, **arguments)
        planner.plan_experiment()
        return self.plans(name, planner.plans_identifier)
