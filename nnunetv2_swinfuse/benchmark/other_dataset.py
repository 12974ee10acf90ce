"""A model on cases of a dataset that it was not trained on: orientation, intensities, classes by name, Dice."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization, ZScoreNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from nnunetv2_swinfuse.benchmark.cell_run import FINAL, CellRun
from nnunetv2_swinfuse.benchmark.metrics import emptiness
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.imaging.grid import read_grid
from nnunetv2_swinfuse.imaging.orientation import orientation_code
from nnunetv2_swinfuse.inference.model_description import REORIENTING
from pretraining.voxel_probe.datasets import label_key

# Readers of nnU-Net that keep the axes of the files, as SimpleITK orders them.
KEEPING = ("SimpleITKIO", "NibabelIO")
# The usual window for abdominal soft tissue (level 40, width 400), in HU.
SOFT_TISSUE = (-160.0, 240.0)
CT = CTNormalization.__name__


def common_orientation(paths: Sequence[Path]) -> str:
    """The orientation code that most volumes have."""
    codes = Counter(orientation_code(read_grid(path).direction) for path in paths)
    return codes.most_common(1)[0][0]


def model_orientation(predictor: nnUNetPredictor, training_images: Sequence[Path]) -> str:
    """Orientation of the arrays that a model was trained on.

    Raises:
        BenchmarkError: for images without an orientation.
    """
    reader = predictor.plans_manager.plans["image_reader_writer"]
    if reader in REORIENTING:
        return "RAS"
    if reader not in KEEPING:
        raise BenchmarkError(f"the model's images are read by {reader}; expected one of {', '.join(KEEPING)}")
    return common_orientation(training_images)


def common_classes(trained: Mapping[str, Any], tested: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Values of each class in two datasets' labels, by its name in the first; empty where the first has regions."""
    if any(not isinstance(value, int) for value in trained.values()):
        return {}
    of_tested = {label_key(name): value for name, value in tested.items() if isinstance(value, int)}
    return {
        name: (value, of_tested[label_key(name)])
        for name, value in trained.items()
        if value and label_key(name) in of_tested and name != "ignore"
    }


def read_case(images: Sequence[Path], label: Path, code: str) -> tuple[np.ndarray, tuple[float, ...], np.ndarray]:
    """Channels (C, z, y, x), spacing in mm (z, y, x) and reference (z, y, x), with the axes brought to a code.

    Voxels of image and reference belong together by their indices, as for nnU-Net: the reference's header is not used.

    Raises:
        BenchmarkError: for a reference of another size.
    """
    channels = [sitk.ReadImage(str(path)) for path in images]
    reference = sitk.ReadImage(str(label))
    if reference.GetSize() != channels[0].GetSize():
        raise BenchmarkError(
            f"{label}: its size is {reference.GetSize()}, that of {images[0]} is {channels[0].GetSize()} (x, y, z)"
        )
    reference.CopyInformation(channels[0])
    oriented = [sitk.DICOMOrient(image, code) for image in (*channels, reference)]
    arrays = [sitk.GetArrayFromImage(image) for image in oriented]
    return np.stack(arrays[:-1]).astype(np.float32), tuple(oriented[0].GetSpacing()[::-1]), arrays[-1]


def rescaled(voxels: np.ndarray, predictor: nnUNetPredictor, channels: Sequence[str]) -> np.ndarray:
    """Channels of another modality on the scale from which the model's own normalisation starts.

    A model of MR divides by the standard deviation of the image, which in CT is that of air against tissue: CT is
    clipped to soft tissue first. A model of CT clips and scales by numbers in HU: MR is given the mean and the standard
    deviation that the model's plans have for CT. Other channels stay as they are.

    Args:
        voxels: (C, z, y, x).
        predictor: with a model.
        channels: names of the tested dataset's channels.
    """
    schemes = predictor.configuration_manager.normalization_schemes
    properties = predictor.plans_manager.foreground_intensity_properties_per_channel
    result = voxels.copy()
    for index, (scheme, name) in enumerate(zip(schemes, channels, strict=True)):
        tested_on_ct = get_normalization_scheme(name) is CTNormalization
        if tested_on_ct and scheme != CT:
            result[index] = voxels[index].clip(*SOFT_TISSUE)
        elif scheme == CT and not tested_on_ct:
            standard = ZScoreNormalization(False, {}).run(voxels[index].copy())
            result[index] = properties[str(index)]["mean"] + properties[str(index)]["std"] * standard
    return result


def dice_of_case(
    predictor: nnUNetPredictor,
    images: Sequence[Path],
    label: Path,
    code: str,
    classes: Mapping[str, tuple[int, int]],
    ignored: int | None = None,
    rescale_from: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """`class`, `value` (Dice; NaN where reference and prediction lack the class) and `empty`, as in metrics.py.

    Args:
        predictor: with a model.
        images: the channels of the case.
        label: its reference.
        code: orientation of the training images.
        classes: as from :func:`common_classes`.
        ignored: value in the reference of voxels that do not count.
        rescale_from: names of the channels, whose intensities are :func:`rescaled`; None: as nnU-Net would.
    """
    voxels, spacing, reference = read_case(images, label, code)
    if rescale_from is not None:
        voxels = rescaled(voxels, predictor, rescale_from)
    with redirect_stdout(sys.stderr):
        prediction = predictor.predict_single_npy_array(voxels, {"spacing": list(spacing)})
    counted = np.ones_like(reference, bool) if ignored is None else reference != ignored
    for name, (predicted_value, reference_value) in classes.items():
        ours, theirs = (prediction == predicted_value) & counted, (reference == reference_value) & counted
        in_prediction, in_reference = int(ours.sum()), int(theirs.sum())
        total = in_prediction + in_reference
        dice = 2 * int((ours & theirs).sum()) / total if total else float("nan")
        yield {"class": name, "value": dice, "empty": emptiness(in_reference, in_prediction)}


def load_model(run: CellRun, device: str) -> nnUNetPredictor:
    """The model of a finished cell, predicting as the experiment does."""
    predictor = nnUNetPredictor(use_mirroring=run.experiment.mirroring, device=torch.device(device), allow_tqdm=False)
    with redirect_stdout(sys.stderr):
        predictor.initialize_from_trained_model_folder(str(run.model.parent), (run.cell.fold,), FINAL)
    return predictor
