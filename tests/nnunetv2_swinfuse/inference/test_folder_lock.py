"""Which processes may write into one folder at a time."""

import os
import subprocess
import sys

import pytest

from nnunetv2_swinfuse.inference.folder_lock import FolderInUseError, lock_folder


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ((0, 1), (0, 1), False),
        ((0, 1), (0, 2), False),
        ((0, 2), (0, 1), False),
        ((0, 2), (1, 2), True),
        ((0, 2), (0, 2), False),
        # Other divisions give both of them case 4, for example.
        ((0, 2), (1, 3), False),
    ],
)
def test_only_parts_of_one_division_run_together(tmp_path, first, second, together):
    held = lock_folder(tmp_path, *first)
    if together:
        lock_folder(tmp_path, *second).release()
    else:
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()}"):
            lock_folder(tmp_path, *second)
    held.release()
    lock_folder(tmp_path, *second).release()


HOLD = """
import sys
from pathlib import Path
from nnunetv2_swinfuse.inference.folder_lock import lock_folder
held = lock_folder(Path(sys.argv[1]), 0, 2)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_ends_with_its_process_even_when_that_is_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError, match=f"process {process.pid}"):
            lock_folder(tmp_path, 0, 1)
    finally:
        process.kill()
        process.communicate()
    lock_folder(tmp_path, 0, 1).release()
