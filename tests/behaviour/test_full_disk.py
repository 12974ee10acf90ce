"""A full disk, a read-only folder, two processes on one folder: a named error, and nothing half written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nnunetv2_swinfuse.imaging.volume import read_volume
from nnunetv2_swinfuse.inference.verify import verify_zip
from tests.nnunetv2_swinfuse.inference.synthetic_models import ct_voxels, write_image, write_whole_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A model and two images."""
    folder = tmp_path_factory.mktemp("disk")
    write_whole_model(folder / "results")
    for case in range(2):
        write_image(folder / "in" / f"case_{case}_0000.nii.gz", ct_voxels(case))
    return folder


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory; skips the test where that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        refused = subprocess.run(mount, capture_output=True, check=False).returncode
    except FileNotFoundError:
        refused = True
    if refused:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def start(module: str, root: Path, *arguments: object) -> subprocess.Popen[str]:
    (model,) = (root / "results").glob("Dataset*/*")
    command = [sys.executable, "-m", f"nnunetv2_swinfuse.inference.{module}", "-m", str(model), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(module: str, root: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and standard error."""
    process = start(module, root, *arguments)
    _, errors = process.communicate()
    return process.returncode, errors


PREDICT = ("-device", "cpu", "--disable_tta", "--disable_progress_bar")


# Enough for the first files, for one mask, and for all masks but not for the report.
@pytest.mark.parametrize("kilobytes", [8, 24, 32])
def test_prediction_on_a_full_disk_leaves_whole_masks_and_resumes(root, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    with mounted(disk, f"size={kilobytes}k"):
        code, errors = run("predict", root, "-i", root / "in", "-o", disk / "out", *PREDICT)
        assert code in (2, 4)
        assert str(disk / "out") in errors
        assert "No space left on device" in errors
        assert "Traceback" not in errors
        for mask in disk.rglob("case_*.nii.gz"):
            assert set(map(float, set(read_volume(mask).voxels.ravel()))) <= {0, 1}
        for record in disk.rglob("*.json"):
            json.loads(record.read_text())
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert run("predict", root, "-i", root / "in", "-o", disk / "out", *PREDICT)[0] in (0, 3)
        assert len(list((disk / "out").glob("*.nii.gz"))) == 2


def test_export_and_check_on_a_full_disk_keep_what_was_there(root, tmp_path):
    disk = tmp_path / "disk"
    size = 1024 * 1024
    with mounted(disk, f"size={size}"):
        assert run("export", root, "-o", disk / "m.zip")[0] == 0
        before = verify_zip(disk / "m.zip").sha256
        (disk / "other").write_bytes(bytes(size - 2 * (disk / "m.zip").stat().st_size))
        code, errors = run("export", root, "-o", disk / "m.zip", "--overwrite")
        assert code == 2
        assert f"{disk / 'm.zip'}: cannot be written (No space left on device)" in errors
        assert verify_zip(disk / "m.zip").sha256 == before
        assert {path.name for path in disk.iterdir()} == {"m.zip", "other"}
        with pytest.raises(OSError, match="No space left"):
            (disk / "rest").write_bytes(bytes(size))
        code, errors = run("check", root, "-i", root / "in", "--json", disk / "check.json")
        assert code == 2
        assert f"{disk / 'check.json'}: cannot be written (No space left on device)" in errors


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("predict", ("-o", "out", *PREDICT)), ("export", ("-o", "m.zip")), ("check", ("--json", "check.json"))],
)
def test_a_folder_that_cannot_be_written_is_named(root, tmp_path, module, arguments):
    disk = tmp_path / "disk"
    with mounted(disk, "ro"):
        option, name, *more = arguments
        images = () if module == "export" else ("-i", root / "in")
        code, errors = run(module, root, *images, option, disk / name, *more)
        assert code == 2
        assert f"{disk / name}: cannot be written (Read-only file system)" in errors
        assert "Traceback" not in errors


def test_of_two_processes_on_one_folder_the_second_is_refused(root, tmp_path):
    out = tmp_path / "out"
    first = start("predict", root, "-i", root / "in", "-o", out, *PREDICT)
    process = out / ".swinfuse" / "process_part0of1"
    while not (process.is_file() and process.read_text()):
        assert first.poll() is None
        time.sleep(0.01)
    code, errors = run("predict", root, "-i", root / "in", "-o", out, *PREDICT)
    late = first.poll() is not None
    first.communicate()
    assert first.returncode in (0, 3)
    # The first may have been done before the second looked.
    assert (code == 2 and f"process {first.pid}" in errors) or (late and code in (0, 3))
    assert len(list(out.glob("*.nii.gz"))) == 2
