"""`python -m tests.interruption`: kills one pretraining run many times and compares it with an uninterrupted one.

Both preprocess the same synthetic volumes and train the same tiny network on the CPU. SIGKILL comes at random moments
of preprocessing, of the steps and of the writing of checkpoints; after each, every file that has its final name must
be complete, and the next command must resume the run. In the end volumes and all recorded losses must be equal, bit by
bit, and no temporary file may be left.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import blosc2
import numpy as np

from nnunetv2_swinfuse.architecture.encoder_file import load_content
from nnunetv2_swinfuse.demo.volumes import write_synthrad
from pretraining.checkpoint import CHECKPOINT, load_checkpoint
from pretraining.monitoring.log import TEXT, read_records
from tests.pretraining.synthetic import tiny_arguments

NAME = "SynthRAD"
PATIENTS = 30
SETTINGS = {"steps": 240, "checkpoint_every": 2, "validate_every": 60, "workers": 1}
# Seconds for any one command, and for a moment to come.
PATIENCE = 600
PREPROCESSING, STEPS, CHECKPOINTS = "preprocessing", "steps", "writing a checkpoint"


class LostError(Exception):
    """Something was lost by a kill."""


@dataclass(frozen=True)
class Folders:
    """nnU-Net's folders of one of the two runs; the raw volumes are shared."""

    raw: Path
    own: Path

    @property
    def volumes(self) -> Path:
        return self.own / "preprocessed" / NAME / "swinfuse"

    @property
    def run(self) -> Path:
        return self.own / "results" / NAME / "swinfuse__tiny"

    @property
    def output(self) -> Path:
        return self.own / "output.txt"

    def starts(self) -> int:
        """How often the log reports that training starts or resumes."""
        log = self.run / TEXT
        return log.read_text().count(" at step ") if log.is_file() else 0

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Starts the command of a user, followed by `more`."""
        command = [sys.executable, "-m", "pretraining", "-d", NAME, "-p", "tiny", *tiny_arguments(**SETTINGS), *more]
        environment = os.environ | {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.own / "preprocessed"),
            "nnUNet_results": str(self.own / "results"),
            "OMP_NUM_THREADS": "1",
        }
        with self.output.open("a") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)

    def resume(self) -> subprocess.Popen[str]:
        return self.start(*(["--c"] if (self.run / CHECKPOINT).is_file() else []))


def main() -> None:
    """Entry point; exits with 1 when anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.interruption", description=__doc__.split("`: ")[1])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="interruption_") as root:
        raw = Path(root) / "raw"
        write_synthrad(raw / NAME, PATIENTS)
        uninterrupted, killed = (Folders(raw, Path(root) / name) for name in ("uninterrupted", "killed"))
        for folders in (uninterrupted, killed):
            folders.own.mkdir()
            folders.output.touch()
        try:
            finish(uninterrupted.start(), uninterrupted)
            kill_repeatedly(killed, options.kills, chance)
            compare(uninterrupted, killed)
        except LostError as error:
            print(f"LOST: {error}")
            raise SystemExit(1) from None


def kill_repeatedly(folders: Folders, kills: int, chance: random.Random) -> None:
    """Kills the run so many times, a quarter of them in preprocessing, then lets it finish."""
    moments = [PREPROCESSING] * (kills // 4)
    moments += [(STEPS, CHECKPOINTS)[kill % 2] for kill in range(kills - len(moments))]
    for number, moment in enumerate(moments, start=1):
        begun = folders.starts()
        process = folders.resume()
        wait_for(moment, folders, process, begun, chance)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        steps = check_files(folders)
        print(f"kill {number:2d}, {moment}: {len(volumes(folders))} volumes, checkpoint of step {steps}", flush=True)
    finish(folders.resume(), folders)
    print(f"{kills} kills: {', '.join(f'{count} in {moment}' for moment, count in Counter(moments).items())}")


def wait_for(moment: str, folders: Folders, process: subprocess.Popen[str], begun: int, chance: random.Random) -> None:
    """Returns at a random moment: while volumes appear, in a step, or with a checkpoint half written."""
    if moment == PREPROCESSING:
        before = len(volumes(folders)) + chance.randrange(2)
        until(lambda: len(volumes(folders)) > before, process)
        time.sleep(chance.uniform(0, 0.3))
        return
    until(lambda: folders.starts() > begun, process)
    time.sleep(chance.uniform(0, 3))
    if moment == CHECKPOINTS:
        until(lambda: any(folders.run.glob(f"{CHECKPOINT}*.tmp*")), process)


def until(arrived: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + PATIENCE
    while not arrived():
        if process.poll() is not None:
            raise LostError(f"the command ended with {process.returncode} before it could be killed")
        if time.monotonic() > limit:
            raise LostError(f"nothing to kill came in {PATIENCE} s")
        time.sleep(0.001)


def finish(process: subprocess.Popen[str], folders: Folders) -> None:
    if process.wait(PATIENCE) != 0:
        raise LostError(f"the command ended with {process.returncode}:\n{folders.output.read_text()[-4000:]}")


def volumes(folders: Folders) -> list[Path]:
    """The preprocessed volumes that are finished."""
    return sorted(path for path in folders.volumes.rglob("*.b2nd") if not path.name.endswith(".tmp.b2nd"))


def voxels(path: Path) -> np.ndarray:
    return blosc2.open(str(path), mode="r")[:]


def check_files(folders: Folders) -> int:
    """Reads every file that has its final name; returns the step of the checkpoint, 0 without one."""
    try:
        for path in volumes(folders):
            voxels(path)
        for path in folders.own.rglob("encoder.pth"):
            load_content(path)
        read_records(folders.run)
        return load_checkpoint(folders.run / CHECKPOINT).step if (folders.run / CHECKPOINT).is_file() else 0
    except Exception as error:
        raise LostError(f"a file is corrupt: {type(error).__name__}: {error}") from error


def compare(uninterrupted: Folders, killed: Folders) -> None:
    """Volumes, losses and weights of both runs must be equal."""
    ours, theirs = ({path.relative_to(f.volumes): path for path in volumes(f)} for f in (killed, uninterrupted))
    if ours.keys() != theirs.keys():
        raise LostError(f"other volumes than without kills: {sorted(ours.keys() ^ theirs.keys())}")
    for name, path in ours.items():
        if not np.array_equal(voxels(path), voxels(theirs[name])):
            raise LostError(f"{path}: other voxels than without kills")
    records, expected = read_records(killed.run), read_records(uninterrupted.run)
    if records != expected:
        pairs = zip_longest(records, expected)
        ours_first, theirs_first = next(pair for pair in pairs if pair[0] != pair[1])
        raise LostError(f"records differ first at {ours_first}, without kills {theirs_first}")
    weights, other = (load_checkpoint(f.run / CHECKPOINT).network_weights for f in (killed, uninterrupted))
    if any(not weights[name].equal(other[name]) for name in other):
        raise LostError("the weights differ from those without kills")
    left = [path for path in killed.own.rglob("*") if ".tmp" in path.name]
    if left:
        raise LostError(f"temporary files are left: {', '.join(map(str, left))}")
    print(f"Equal: {len(ours)} volumes, {len(records)} records (last total {records[-1]['total']:.6f}), all weights")


if __name__ == "__main__":
    main()
