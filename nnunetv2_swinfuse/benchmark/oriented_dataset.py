"""A raw dataset described so that nnU-Net reads it with the axes of pretraining; no image is copied.

nnU-Net takes the reader of a dataset from `overwrite_image_reader_writer` of its dataset.json. Fingerprint, plans and
preprocessing then use that reader, and nnU-Net's validation writes predictions in the orientation of the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.imaging.grid import read_grid
from nnunetv2_swinfuse.imaging.orientation import orientation_code
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE

if TYPE_CHECKING:
    from nnunetv2_swinfuse.benchmark.preparation import Dataset

READER = "SimpleITKIOWithReorient"


def describe_reoriented(dataset: Dataset, raw: Path) -> None:
    """Writes a dataset.json for an nnUNet_raw of its own: the files as they are, read in RAS order.

    Args:
        dataset: with the files of all labelled cases.
        raw: folder that serves as nnUNet_raw.

    Raises:
        BenchmarkError: for a case whose files do not agree on the orientation. nnU-Net's default reader does not use
            the header of labels; this one does, and would turn image and labels differently.
        InputError: for a file that is no 3D volume.
    """
    for case, label in dataset.label.items():
        codes = {path: orientation_code(read_grid(path).direction) for path in (*dataset.images[case], label)}
        if len(set(codes.values())) > 1:
            listing = ", ".join(f"{path} {code}" for path, code in codes.items())
            raise BenchmarkError(
                f'{dataset.name}, {case}: files of different orientation ({listing}); "orientation": "RAS" needs '
                "images and labels with the same axes. Correct the headers"
            )
    files = {
        case: {"images": [str(path.absolute()) for path in dataset.images[case]], "label": str(label.absolute())}
        for case, label in dataset.label.items()
    }
    content = {**dataset.content, "dataset": files, "overwrite_image_reader_writer": READER}
    folder = raw / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DATASET_FILE, content)
