"""A labelled image through the same preprocessing as the images of pretraining, for probes of frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import Grid, read_grid
from nnunetv2_swinfuse.imaging.orientation import reoriented
from pretraining.collections.collection import ORIENTATION, Volume
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.preprocessing.foreground import body_mask, read_mask, read_volume
from pretraining.preprocessing.image import resampling_problem, run_case


class LabelledImage(NamedTuple):
    """A preprocessed image with its labels.

    Attributes:
        voxels: float32 (z, y, x), normalised.
        labels: int16 (z, y, x); 0 is background.
        body: bool (z, y, x).
        padding: value for voxels outside the image.
    """

    voxels: np.ndarray
    labels: np.ndarray
    body: np.ndarray
    padding: float


def preprocess_labelled(volume: Volume, label_file: Path, normalisation: Normalisation) -> LabelledImage:
    """Preprocesses an image as :func:`preprocess_image` does, and resamples its labels along.

    Raises:
        InputError: when a file is unusable, the labels are not on the image's grid or no whole numbers from 0 to 126,
            or for a CT when the normalisation was measured on a collection without CT.
    """
    if volume.domain == "CT" and not normalisation.ct:
        raise InputError(
            f"{volume.path}: a CT, but the normalisation was measured on a collection without CT. Name one with CT "
            "with --collection"
        )
    voxels, properties = read_volume(volume.path)
    labels = read_mask(volume, label_file, voxels)
    grid = _common_grid(volume.path, label_file)
    if problem := resampling_problem(volume.path, grid, normalisation.spacing):
        raise InputError(problem)
    values = np.unique(labels)
    if values.min() < 0 or values.max() > 126 or (values != np.round(values)).any():
        raise InputError(
            f"{label_file}: values from {values.min():g} to {values.max():g}; expected whole numbers from 0 to 126"
        )
    segmentations = np.concatenate([labels, body_mask(volume, voxels)]).astype(np.int8)
    data, segmentation = run_case(voxels, segmentations, properties, [volume.domain], normalisation, volume.path)
    # As preprocess_image: nnU-Net leaves voxels outside the mask at zero if it normalised inside the mask.
    masked = volume.domain == "MR" and normalisation.mr_use_mask and bool((segmentation[0] < 0).any())
    padding = 0.0 if masked else float(data.min())
    return LabelledImage(data[0], segmentation[0].clip(0).astype(np.int16), segmentation[1] > 0, padding)


def _common_grid(image: Path, label_file: Path) -> Grid:
    # Image and labels are brought to one order of axes by their own headers: another header would mirror the labels.
    grids = [reoriented(read_grid(file), ORIENTATION) for file in (image, label_file)]
    if difference := grids[0].differs_from(grids[1]):
        raise InputError(
            f"{image} and {label_file}: different grids ({difference}, axes in {ORIENTATION} order); resample the "
            "labels, or if the voxels belong together, give them the image's header"
        )
    return grids[0]
