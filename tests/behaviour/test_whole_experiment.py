"""A whole experiment through nnU-Net's commands, on synthetic volumes; killed, it ends with the same table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.benchmark.table import read_rows

SIZE = 24
DATASET = "Dataset901_Made"
EXPERIMENT = {
    "datasets": [901],
    "arms": ["scratch", "swinfuse"],
    "labels": [3],
    "seeds": [0, 1],
    "test_cases": 2,
    "device": "cpu",
    "mirroring": False,
    "length": {"epochs": 1, "iterations": 2, "validation_iterations": 1},
    "plans": {"patch_size": [16, 16, 16], "batch_size": 2},
    "settings": {"initial_lr": 0.001},
    "pretraining": {
        "collections": ["Pairs"],
        "preset": "tiny",
        "steps": 1,
        "settings": {
            "crop_size": [16, 16, 16], "strides": "[[1,1,1],[2,2,2],[2,2,2]]", "feature_size": 12, "depths": [1],
            "num_heads": [2], "batch_size": 2, "validation_batches": 1, "workers": 0, "warmup_steps": 1,
        },
    },
}  # fmt: skip


def write(path: Path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def synthetic_case(seed: int):
    """Two nested cuboids in noise: image, label."""
    generator = np.random.default_rng(seed)
    label = np.zeros((SIZE,) * 3, np.uint8)
    z, y, x = generator.integers(3, 8, 3)
    label[z : z + 12, y : y + 12, x : x + 12] = 1
    label[z + 4 : z + 9, y + 4 : y + 9, x + 4 : x + 9] = 2
    return (100.0 * label + generator.normal(0, 10, label.shape)).astype(np.float32), label


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("experiment")
    raw = root / "raw"
    for case in range(5):
        image, label = synthetic_case(case)
        write(raw / DATASET / "imagesTr" / f"case_{case}_0000.nii.gz", image)
        write(raw / DATASET / "labelsTr" / f"case_{case}.nii.gz", label)
    content = {
        "channel_names": {"0": "MR"}, "labels": {"background": 0, "shell": 1, "core": 2},
        "numTraining": 5, "file_ending": ".nii.gz",
    }  # fmt: skip
    (raw / DATASET / "dataset.json").write_text(json.dumps(content))
    for patient in range(4):
        image, _ = synthetic_case(100 + patient)
        write(raw / "Pairs" / "ct" / f"p{patient}.nii.gz", image)
        write(raw / "Pairs" / "mr" / f"p{patient}.nii.gz", 300 - image)
    (root / "trial.json").write_text(json.dumps(EXPERIMENT))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SWINFUSE_", "nnUNet_"))}
    return {
        **kept,
        "nnUNet_raw": str(raw),
        "nnUNet_results": str(root / "results"),
        "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


def command(environment: dict[str, str], *options: str) -> list[str]:
    experiment = Path(environment["nnUNet_raw"]).parent / "trial.json"
    return [sys.executable, "-m", "nnunetv2_swinfuse.benchmark.cli", str(experiment), *options]


def run(environment: dict[str, str], *options: str) -> str:
    ended = subprocess.run(command(environment, *options), env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.mark.slow
@pytest.mark.skipif("WHOLE_EXPERIMENT" not in os.environ, reason="takes about three minutes; set WHOLE_EXPERIMENT=1")
def test_a_whole_experiment_that_is_killed_ends_with_the_same_table(environment):
    root = Path(environment["nnUNet_results"]) / "swinfuse_benchmark" / "trial"
    first = root / "cells" / f"scratch__{DATASET}__3_labels__seed_0__fold_0"
    killed = subprocess.Popen(command(environment), env=environment, start_new_session=True)
    # In the middle of the first training: its log has begun an epoch, or is about to.
    while not list(first.glob("nnUNet_results/*/*/fold_0/training_log_*.txt")):
        assert killed.poll() is None, "the experiment ended before its first training"
        time.sleep(0.1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    for child in children_in(first):
        os.kill(child, signal.SIGKILL)
    assert not (first / "result.json").is_file()
    listed = run(environment, "--list")
    assert f"begun    {first.name}" in listed
    assert listed.count("waiting") == 3

    # Two cells at a time, each with one thread as before.
    run(environment, "-num_workers", "2")
    table = read_rows(root / "results")
    assert sorted(table["cell"].unique()) == sorted(path.name for path in (root / "cells").iterdir())
    assert len(table) == 4 * 2 * 2 * 4
    check_figures(root, table)

    # The killed cell again, from nothing, without a kill.
    shutil.rmtree(first)
    for name in ("cases.csv", "cells.json"):
        (root / "results" / name).unlink()
    run(environment)
    pd.testing.assert_frame_equal(read_rows(root / "results"), table)
    report = (root / "report.html").read_text()
    assert "swinfuse against scratch" in report
    assert "The worst case with contours" in report


def children_in(folder: Path) -> list[int]:
    """Processes that hold the cell's lock: what the killed benchmark had started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) == str(folder / "lock") for link in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def check_figures(root: Path, table: pd.DataFrame) -> None:
    """Of the table, the kept cells and the report: those of nnU-Net's summary.json."""
    kept = json.loads((root / "results" / "cells.json").read_text())
    report = json.loads((root / "results" / "report.json").read_text())
    dice = table[table["metric"] == "Dice"]
    means: dict[str, list[float]] = {"scratch": [], "swinfuse": []}
    for name, cell in kept.items():
        (path,) = (root / "cells" / name).glob("nnUNet_results/*/*/fold_0/validation/summary.json")
        summary = json.loads(path.read_text())
        assert cell["foreground_mean"] == summary["foreground_mean"]["Dice"]
        means[cell["cell"]["arm"]].append(summary["foreground_mean"]["Dice"])
        for label, values in {"shell": "1", "core": "2"}.items():
            mean = dice[(dice["cell"] == name) & (dice["class"] == label)]["value"].mean()
            assert mean == pytest.approx(summary["mean"][values]["Dice"], abs=1e-6)
    for entry in report["means"]:
        if (entry["metric"], entry["class"]) == ("Dice", "foreground"):
            assert entry["mean"] == pytest.approx(np.mean(means[entry["arm"]]), abs=1e-6)
