"""Kills swinfuse_predict and swinfuse_export at random moments; files must be complete, and the next run resumes.

Masks and zips must be, byte for byte, those of runs that nobody killed; an older zip stays until it is replaced.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from nnunetv2_swinfuse.inference.verify import verify_zip
from tests.interruption.killing import Command, LostError, kill
from tests.nnunetv2_swinfuse.inference.synthetic_models import ct_voxels, write_image, write_whole_model

CASES = 4
# After this number of kills the masks are deleted, so that there is something to predict.
KILLS_A_FOLDER = 3


def run_prediction(root: Path, kills: int, chance: random.Random) -> None:
    """Predicts the same cases, killed and not, in an empty folder.

    Raises:
        LostError: when a mask differs or is missing in the end.
    """
    model = write_whole_model(root / "results")
    for case in range(CASES):
        write_image(root / "in" / f"case_{case}_0000.nii.gz", ct_voxels(case))
    words = ("-m", "nnunetv2_swinfuse.inference.predict", "-i", str(root / "in"), "-m", str(model))
    settings = ("-device", "cpu", "--disable_tta", "-o")
    command = Command((*words, *settings), root / "output.txt", {}, codes=(0, 3))
    seconds = command.finish(root / "whole")
    whole = _masks(root / "whole")
    out, number = root / "killed", 0
    while number < kills:
        if number % KILLS_A_FOLDER == 0:
            shutil.rmtree(out, ignore_errors=True)
        process = command.start(out)
        time.sleep(chance.uniform(0.4, 1.0) * seconds)
        if not kill(process):
            # It was done before: nothing to kill in this folder any more.
            shutil.rmtree(out)
            continue
        number += 1
        for name, content in _masks(out).items():
            if content != whole[name]:
                raise LostError(f"{out / name} is not the mask of a run without kills")
        print(f"kill {number:2d}, prediction: {len(_masks(out))} of {CASES} masks", flush=True)
    command.finish(out)
    if _masks(out) != whole:
        raise LostError(f"{out}: masks differ from those of a run without kills, or are missing")
    if left := list(out.glob(".swinfuse/partial*")):
        raise LostError(f"temporary files are left: {left}")
    print(f"{kills} kills in prediction: all {CASES} masks as without kills")


def run_export(root: Path, kills: int, chance: random.Random) -> None:
    """Replaces a model zip again and again, in an empty folder.

    Raises:
        LostError: when the zip is missing, damaged or another one.
    """
    model = write_whole_model(root / "results")
    target = root / "out" / "m.zip"
    command = Command(
        ("-m", "nnunetv2_swinfuse.inference.export", "-m", str(model), "-o", str(target), "--overwrite"),
        root / "output.txt", {},
    )  # fmt: skip
    seconds = command.finish()
    expected = verify_zip(target).sha256
    number = 0
    while number < kills:
        process = command.start()
        time.sleep(chance.uniform(0.4, 1.0) * seconds)
        number += kill(process)
        if verify_zip(target).sha256 != expected:
            raise LostError(f"{target} is not the zip of an export without kills")
    command.finish()
    left = sorted(path.name for path in target.parent.iterdir() if path != target)
    if left:
        raise LostError(f"temporary files are left: {', '.join(left)}")
    print(f"{kills} kills in export: the zip is always whole")


def _masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")} if folder.is_dir() else {}
