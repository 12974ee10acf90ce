"""A raw dataset of nnU-Net: its files, and a description with which nnU-Net reads it with the axes of pretraining.

nnU-Net takes the reader of a dataset from `overwrite_image_reader_writer` of its dataset.json. Fingerprint, plans and
preprocessing then use that reader, and nnU-Net's validation writes predictions in the orientation of the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.imaging.grid import read_grid
from nnunetv2_swinfuse.imaging.orientation import orientation_code
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, RAW, REORIENTING_READER


@dataclass(frozen=True)
class Dataset:
    """A raw dataset of nnU-Net.

    Attributes:
        number, name: such as 501 and `Dataset501_Hippocampus`.
        folder: in nnUNet_raw.
        images, label: files of each labelled case.
    """

    number: int
    name: str
    folder: Path
    images: Mapping[str, tuple[Path, ...]]
    label: Mapping[str, Path]

    @property
    def content(self) -> dict[str, Any]:
        """Its dataset.json."""
        return json.loads((self.folder / DATASET_FILE).read_text())

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Of each labelled case: its channels, then its label."""
        return {case: (*self.images[case], label) for case, label in self.label.items()}

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels, such as `CT`; empty where its dataset.json has none."""
        content = self.content
        return tuple(map(str, (content.get("channel_names") or content.get("modality") or {}).values()))


def find_dataset(number: int) -> Dataset:
    """Raises BenchmarkError when nnUNet_raw has no such dataset, or one without labelled cases."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw = Path(os.environ.get(RAW, ""))
    if not os.environ.get(RAW) or not raw.is_dir():
        raise BenchmarkError("nnUNet_raw is not set or no folder; for example: export nnUNet_raw=/data/nnUNet_raw")
    folders = sorted(raw.glob(f"Dataset{number:03d}_*"))
    if len(folders) != 1:
        have = ", ".join(path.name for path in sorted(raw.glob("Dataset*"))) or "none"
        raise BenchmarkError(f"{raw}: {len(folders)} folders are dataset {number}, expected one; it has {have}")
    try:
        cases = get_filenames_of_train_images_and_targets(str(folders[0]))
    except (OSError, KeyError, ValueError, AssertionError) as error:
        raise BenchmarkError(f"{folders[0]}: not a dataset of nnU-Net ({type(error).__name__}: {error})") from error
    return Dataset(
        number,
        folders[0].name,
        folders[0],
        {str(name): tuple(map(Path, files["images"])) for name, files in cases.items()},
        {str(name): Path(files["label"]) for name, files in cases.items()},
    )


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
    content = {**dataset.content, "dataset": files, "overwrite_image_reader_writer": REORIENTING_READER}
    folder = raw / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DATASET_FILE, content)
