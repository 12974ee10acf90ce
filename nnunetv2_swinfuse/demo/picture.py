"""The picture at the end of the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import imread

COLOURS = ListedColormap(["tab:red", "tab:cyan", "tab:orange", "tab:green", "tab:purple", "tab:olive"])


def draw_demo(path: Path, dataset: Path, predictions: Path, pretraining_panel: Path) -> Path:
    """Image, reference and prediction of the test cases, next to what pretraining reconstructed.

    Args:
        path: the PNG to write.
        dataset: nnU-Net raw dataset with imagesTs and labelsTs.
        predictions: folder of segmentations.
        pretraining_panel: the last reconstruction picture of pretraining.
    """
    cases = sorted(predictions.glob("*.nii.gz"))
    figure = Figure(figsize=(17, 3.2 * max(len(cases), 3)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    axes = left.subplots(len(cases), 3, squeeze=False)
    left.suptitle("Fine-tuned in nnU-Net, predicted by stock nnU-Net")
    for row, prediction_file in zip(axes, cases, strict=True):
        case = prediction_file.name.removesuffix(".nii.gz")
        image = _read(dataset / "imagesTs" / f"{case}_0000.nii.gz")
        reference = _read(dataset / "labelsTs" / f"{case}.nii.gz")
        prediction = _read(prediction_file)
        # The slice with the most structures; of these, the one with the most labelled voxels.
        z = max(range(len(reference)), key=lambda z: (len(np.unique(reference[z])), (reference[z] > 0).sum()))
        for axis, overlay, title in zip(
            row, (None, reference, prediction), ("image", "reference", "prediction"), strict=True
        ):
            axis.imshow(image[z], cmap="gray")
            if overlay is not None:
                axis.imshow(
                    np.ma.masked_equal(overlay[z], 0), cmap=COLOURS, vmin=1, vmax=COLOURS.N, alpha=0.6,
                    interpolation="nearest",
                )  # fmt: skip
            axis.set_title(f"{case}: {title}" if overlay is None else title, fontsize=9)
            axis.set_axis_off()
    axis = right.subplots()
    right.suptitle("Pretraining: inpainting of held-out CT and MR crops")
    axis.imshow(imread(pretraining_panel))
    axis.set_axis_off()
    figure.savefig(path, dpi=80)
    return path


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
