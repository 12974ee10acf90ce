"""SIGKILL at random moments of prediction and export: what is there is whole, and the next run goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_swinfuse.inference.verify import verify_zip
from tests.nnunetv2_swinfuse.inference.synthetic_models import ct_voxels, write_image, write_whole_model

KILLS = int(os.environ.get("SWINFUSE_KILLS", "3"))


def start(module: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"nnunetv2_swinfuse.inference.{module}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(module: str, *arguments: object) -> float:
    """Seconds of a run that nobody kills."""
    begin = time.monotonic()
    assert start(module, *arguments).wait() in (0, 3)
    return time.monotonic() - begin


def kill(module: str, latest: float, *arguments: object) -> None:
    process = start(module, *arguments)
    time.sleep(random.Random(time.monotonic_ns()).uniform(0.4, 1.0) * latest)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_predictions_leave_whole_masks_and_go_on(tmp_path):
    model = write_whole_model(tmp_path / "results")
    for case in range(4):
        write_image(tmp_path / "in" / f"case_{case}_0000.nii.gz", ct_voxels(case))
    arguments = ("-i", tmp_path / "in", "-m", model, "-device", "cpu", "--disable_tta", "-o")
    seconds = finish("predict", *arguments, tmp_path / "whole")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.nii.gz")}
    out = tmp_path / "killed"
    for number in range(KILLS):
        if number % 3 == 0:
            shutil.rmtree(out, ignore_errors=True)
        kill("predict", seconds, *arguments, out)
        for path in out.glob("*.nii.gz") if out.is_dir() else ():
            assert path.read_bytes() == whole[path.name]
    finish("predict", *arguments, out)
    assert {path.name: path.read_bytes() for path in out.glob("*.nii.gz")} == whole


@pytest.mark.slow
def test_killed_exports_leave_the_zip_before(tmp_path):
    model = write_whole_model(tmp_path / "results")
    target: Path = tmp_path / "out" / "m.zip"
    seconds = finish("export", "-m", model, "-o", target)
    before = verify_zip(target).sha256
    for _ in range(KILLS):
        kill("export", seconds, "-m", model, "-o", target, "--overwrite")
        assert verify_zip(target).sha256 == before
