"""Measures of one validation folder: Dice as nnU-Net wrote it into summary.json, distances and volumes from the masks.

Where a class is missing, a number would hide it; the column `empty` says which, and the tables count it:

- `both`: neither reference nor prediction has the class. Dice, HD95 and surface Dice are not defined (nnU-Net's NaN).
- `missed`: only the reference has it. Dice and surface Dice are 0, HD95 is the diagonal of the image.
- `invented`: only the prediction has it; the values as for `missed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_swinfuse.errors import INSTALL_BENCHMARK, BenchmarkError

METRICS = {
    "Dice": "Dice",
    "HD95": "95th percentile of the surface distances, mm",
    "SurfaceDice": "surface Dice",
    "VolumeError": "absolute volume error, ml",
}
HIGHER_IS_BETTER = {"Dice": True, "HD95": False, "SurfaceDice": True, "VolumeError": False}
SUMMARY = "summary.json"


def emptiness(reference: int, prediction: int) -> str:
    """The value of the column `empty` for a class, from its voxels in reference and prediction."""
    if reference and prediction:
        return ""
    return "missed" if reference else "invented" if prediction else "both"


def surface_measures(
    reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], tolerance_mm: float
) -> tuple[float, float]:
    """HD95 in mm and the surface Dice of two masks (z, y, x), by DeepMind's surface-distance.

    Args:
        reference, prediction: of the same shape (z, y, x).
        spacing: mm along z, y, x.
        tolerance_mm: of the surface Dice.
    """
    try:
        import surface_distance
    except ImportError as error:
        raise BenchmarkError(f"surface-distance is not installed: {INSTALL_BENCHMARK}") from error
    missing = emptiness(int(reference.any()), int(prediction.any()))
    if missing == "both":
        return float("nan"), float("nan")
    if missing:
        return diagonal(reference.shape, spacing), 0.0
    distances = surface_distance.compute_surface_distances(reference, prediction, spacing)
    return (
        float(surface_distance.compute_robust_hausdorff(distances, 95)),
        float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)),
    )


def diagonal(shape: tuple[int, ...], spacing: tuple[float, ...]) -> float:
    """Diagonal of an image in mm: no distance within it is larger."""
    return float(np.linalg.norm(np.multiply(shape, spacing)))


def measure_folder(folder: Path, dataset_json: Mapping[str, Any], tolerance_mm: float) -> Iterator[dict[str, Any]]:
    """Rows `case`, `class`, `metric`, `value`, `empty` of all cases that nnU-Net evaluated in a folder.

    Args:
        folder: a validation folder of nnU-Net, with its `summary.json`.
        dataset_json: of the dataset; names classes and file ending.
        tolerance_mm: of the surface Dice.

    Raises:
        BenchmarkError: when nnU-Net's summary is missing, or the masks changed after it was written.
    """
    from nnunetv2.evaluation.evaluate_predictions import key_to_label_or_region, region_or_label_to_mask
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    path = folder / SUMMARY
    if not path.is_file():
        raise BenchmarkError(f"{path}: missing; nnU-Net's validation did not finish")
    summary = json.loads(path.read_text())
    labels = dataset_json["labels"]
    ignored = labels.get("ignore")
    names = {_key(label): name for name, label in labels.items()}
    reader = None
    for entry in summary["metric_per_case"]:
        files = entry["reference_file"], entry["prediction_file"]
        if reader is None:
            reader = determine_reader_writer_from_dataset_json(dataset_json, files[0], verbose=False)()
        (reference, properties), (prediction, _) = (reader.read_seg(file) for file in files)
        if ignored is not None:
            # A label that no class has: outside every mask, in reference and prediction.
            reference, prediction = (
                np.where(reference == ignored, -1, segmentation) for segmentation in (reference, prediction)
            )
        reference, prediction = reference[0], prediction[0]
        spacing = tuple(float(size) for size in properties["spacing"])
        case = Path(files[1]).name.removesuffix(dataset_json["file_ending"])
        for label, values in entry["metrics"].items():
            region = key_to_label_or_region(label)
            masks = [region_or_label_to_mask(segmentation, region) for segmentation in (reference, prediction)]
            counts = [int(mask.sum()) for mask in masks]
            if counts != [int(values["n_ref"]), int(values["n_pred"])]:
                raise BenchmarkError(
                    f"{files[1]}: class {label} has {counts[1]} voxels ({counts[0]} in the reference), but {path} says "
                    f"{values['n_pred']} ({values['n_ref']}): the masks changed after nnU-Net's evaluation"
                )
            distance, surface = surface_measures(masks[0], masks[1], spacing, tolerance_mm)
            volume = abs(counts[1] - counts[0]) * float(np.prod(spacing)) / 1000
            measured = {"Dice": values["Dice"], "HD95": distance, "SurfaceDice": surface, "VolumeError": volume}
            for metric, value in measured.items():
                yield {
                    "case": case,
                    "class": names.get(_key(region), label),
                    "metric": metric,
                    "value": float("nan") if value is None else float(value),
                    "empty": emptiness(*counts),
                }


def _key(label: Any) -> tuple[int, ...]:
    """dataset.json may write a region of one label as a number or as a list."""
    return tuple(int(part) for part in label) if isinstance(label, list | tuple) else (int(label),)
