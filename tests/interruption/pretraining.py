"""Kills one pretraining run many times and compares it with an uninterrupted one.

Both preprocess the same synthetic volumes and train the same tiny network on the CPU. SIGKILL comes at random moments
of preprocessing, of the steps and of the writing of checkpoints; after each, every file that has its final name must
be complete, and the next command must resume the run. In the end volumes and all recorded losses must be equal, bit by
bit, and no temporary file may be left.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import blosc2
import numpy as np

from nnunetv2_swinfuse.architecture.encoder_file import load_content
from nnunetv2_swinfuse.demo.volumes import write_synthrad
from pretraining.checkpoint import CHECKPOINT, load_checkpoint
from pretraining.monitoring.log import TEXT, read_records
from tests.interruption.killing import Command, LostError, Process, kill, until
from tests.pretraining.synthetic import tiny_arguments

NAME = "SynthRAD"
PATIENTS = 30
SETTINGS = {"steps": 240, "checkpoint_every": 2, "validate_every": 60, "workers": 1}
PREPROCESSING, STEPS, CHECKPOINTS = "preprocessing", "steps", "writing a checkpoint"


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

    @property
    def command(self) -> Command:
        """The command of a user."""
        variables = {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.own / "preprocessed"),
            "nnUNet_results": str(self.own / "results"),
        }
        words = ("-m", "pretraining", "-d", NAME, "-p", "tiny", *tiny_arguments(**SETTINGS))
        return Command(words, self.output, variables)

    @property
    def resume(self) -> tuple[str, ...]:
        """What a user adds to resume."""
        return ("--c",) if (self.run / CHECKPOINT).is_file() else ()


def run(root: Path, kills: int, chance: random.Random) -> None:
    """Both runs, in an empty folder.

    Raises:
        LostError: when anything was lost.
    """
    raw = root / "raw"
    write_synthrad(raw / NAME, PATIENTS)
    uninterrupted, killed = (Folders(raw, root / name) for name in ("uninterrupted", "killed"))
    for folders in (uninterrupted, killed):
        folders.own.mkdir()
        folders.output.touch()
    uninterrupted.command.finish()
    kill_repeatedly(killed, kills, chance)
    compare(uninterrupted, killed)


def kill_repeatedly(folders: Folders, kills: int, chance: random.Random) -> None:
    """Kills the run repeatedly, a quarter of the times in preprocessing, then lets it finish."""
    moments = [PREPROCESSING] * (kills // 4)
    moments += [(STEPS, CHECKPOINTS)[kill % 2] for kill in range(kills - len(moments))]
    for number, moment in enumerate(moments, start=1):
        begun = folders.starts()
        process = folders.command.start(*folders.resume)
        wait_for(moment, folders, process, begun, chance)
        kill(process)
        steps = check_files(folders)
        print(f"kill {number:2d}, {moment}: {len(volumes(folders))} volumes, checkpoint of step {steps}", flush=True)
    folders.command.finish(*folders.resume)
    print(f"{kills} kills: {', '.join(f'{count} in {moment}' for moment, count in Counter(moments).items())}")


def wait_for(moment: str, folders: Folders, process: Process, begun: int, chance: random.Random) -> None:
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
