import json
import threading
import time

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.benchmark.cell_run import CellRun
from nnunetv2_swinfuse.benchmark.commands import CommandError

from .tables import DATASET, analysed, result_of, rows_of


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A raw dataset of 12 tiny cases."""
    folder = tmp_path / "raw" / DATASET
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for case in range(12):
        image = sitk.GetImageFromArray(np.full((2, 2, 2), case, np.float32))
        sitk.WriteImage(image, str(folder / "imagesTr" / f"case_{case:03d}_0000.nii.gz"))
        sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(folder / "labelsTr" / f"case_{case:03d}.nii.gz"))
    labels = {"background": 0, "shell": 1, "core": 2}
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 12, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return folder


@pytest.fixture
def cells_run(monkeypatch):
    """The cells' trainings are replaced by their results; what was run, where, and which fail."""
    run = {"names": [], "fails": (), "places": [], "together": 0, "most": 0}
    lock = threading.Lock()

    def run_cell(self, processes, place):
        cell = self.cell
        with lock:
            run["names"].append(cell.name)
            run["places"].append(place)
            run["together"] += 1
            run["most"] = max(run["most"], run["together"])
        time.sleep(0.05)
        with lock:
            run["together"] -= 1
        if cell.name in run["fails"]:
            raise CommandError("nnUNetv2_train ended with status 1")
        cases = list(self.split.test)
        values = {name: np.full(len(cases), 0.5) for name in ("Dice", "HD95", "SurfaceDice", "VolumeError")}
        return result_of(cell, seconds=100.0), rows_of(cell, values, cases)

    monkeypatch.setattr(CellRun, "run", run_cell)
    return run


@pytest.fixture(scope="session")
def plain_analysis(tmp_path_factory):
    """Experiment, workspace and analysis of two arms with nothing special; for tests that change nothing of them."""
    return analysed(tmp_path_factory.mktemp("plain"))
