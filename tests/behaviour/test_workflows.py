"""What people already use, with an installed model of ours: 3D Slicer's extension, a script of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.inference.export import export_model
from tests.behaviour.commands import nnunet
from tests.nnunetv2_swinfuse.inference.synthetic_models import ct_voxels, write_image, write_whole_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """nnUNet_results of a clinic."""
    root = tmp_path_factory.mktemp("clinic")
    export_model(write_whole_model(root / "trained"), root / "model.zip")
    (root / "results").mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("nnUNet_results", str(root / "results"))
        nnunet("install_pretrained_model_from_zip", root / "model.zip")
    return root / "results"


def python(*arguments: object, **variables: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet", "SWINFUSE"))}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], env={**environment, **variables}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode in (0, 3), result.stdout + result.stderr


def our_mask(results: Path, image: Path, output: Path, *options: str) -> Path:
    (model,) = results.glob("Dataset*/*")
    python(
        "-m", "nnunetv2_swinfuse.inference.predict", "-i", image, "-o", output, "-m", model, "-device", "cpu", *options
    )
    (mask,) = output.glob("*.nii.gz")
    return mask


@pytest.fixture(scope="module")
def unmirrored(installed, tmp_path_factory) -> bytes:
    """Our mask of `ct_voxels()`, without mirroring."""
    folder = tmp_path_factory.mktemp("unmirrored")
    image = write_image(folder / "volume_0000.nii.gz", ct_voxels())
    return our_mask(installed, image, folder / "out", "--disable_tta").read_bytes()


@pytest.mark.parametrize("chosen", ["model", "dataset", "results"])
def test_3d_slicers_extension(installed, unmirrored, tmp_path, chosen):
    # As Parameter.py and SegmentationLogic.py of KitwareMedical/SlicerNNUnet do: the first dataset.json below the
    # folder that the user has chosen decides; all names are those of the folders above it.
    folders = {"results": installed, "dataset": next(installed.iterdir())}
    folders["model"] = next(folders["dataset"].iterdir())
    dataset_file = next(folders[chosen].rglob("dataset.json"))
    model = dataset_file.parent
    trainer, plans, configuration = model.name.split("__")
    assert (model / "fold_0" / "checkpoint_final.pth").is_file()
    source, target = tmp_path / "input", tmp_path / "output"
    source.mkdir()
    target.mkdir()
    # The ending that it takes from dataset.json since its issue 14.
    ending = json.loads(dataset_file.read_text())["file_ending"]
    write_image(source / f"volume_0000{ending}", ct_voxels())
    (command,) = entry_points(group="console_scripts", name="nnUNetv2_predict")
    start = f"from {command.module} import {command.attr} as f; f()"
    names = ("-d", model.parent.name, "-tr", trainer, "-p", plans, "-c", configuration, "-f", 0)
    numbers = ("-npp", 1, "-nps", 1, "-step_size", 0.5, "-device", "cpu", "-chk", "checkpoint_final.pth")
    root = str(model.parent.parent)
    python(
        "-c", start, "-i", source, "-o", target, *names, *numbers, "--disable_tta",
        nnUNet_results=root, nnUNet_raw=root, nnUNet_preprocessed=root,
    )  # fmt: skip
    mask = next(target.rglob("*.nii*"))
    assert mask.read_bytes() == unmirrored
    labels = json.loads(dataset_file.read_text())["labels"]
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(mask))))) <= set(labels.values())


SCRIPT = """
import os
import sys
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

if __name__ == "__main__":
    # As nnUNetv2_predict on a CPU: the number of threads can decide the last bit.
    torch.set_num_threads(os.cpu_count())
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(sys.argv[1], use_folds=(0,), checkpoint_name="checkpoint_final.pth")
    predictor.predict_from_files(
        [[sys.argv[2]]], [sys.argv[3]], num_processes_preprocessing=1, num_processes_segmentation_export=1
    )
"""


def test_a_script_with_nnunets_predictor(installed, tmp_path):
    (model,) = installed.glob("Dataset*/*")
    image = write_image(tmp_path / "case_0000.nii.gz", ct_voxels())
    # A file: nnU-Net's workers are spawned, and import it.
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "out").mkdir()
    python(tmp_path / "script.py", model, image, tmp_path / "out" / "case")
    theirs = (tmp_path / "out" / "case.nii.gz").read_bytes()
    assert theirs == our_mask(installed, image, tmp_path / "ours").read_bytes()
