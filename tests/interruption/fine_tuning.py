"""Kills one fold of nnUNetv2_train with our trainer many times and lets it finish.

SIGKILL comes while the command starts and rewrites the model's plans, in epochs, while a checkpoint is half written,
and in nnU-Net's validation. After each, every file of the model that has its final name must be complete; `--c` must
resume. In the end there must be a final checkpoint of all epochs that stock nnU-Net opens, plans and the record of the
fold's start as without kills, and no temporary file.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_swinfuse.discovery.register import external_trainers_folder
from nnunetv2_swinfuse.training.fold_start import RECORD
from tests.interruption.killing import Command, LostError, Process, kill, until
from tests.nnunetv2_swinfuse.training.workshop import Workshop, prepare_datasets

TRAINER, EPOCHS = "nnUNetTrainerSwinFUSE_5epochs", 5
TRAIN = "from nnunetv2.run.run_training import run_training_entry; run_training_entry()"
START, EPOCH, CHECKPOINT, VALIDATION = "start", "epochs", "writing a checkpoint", "validation"
MOMENTS = (START, EPOCH, CHECKPOINT, EPOCH, CHECKPOINT, VALIDATION)


def run(root: Path, kills: int, chance: random.Random) -> None:
    """An uninterrupted and a killed fold, in an empty folder.

    Raises:
        LostError: when anything was lost.
    """
    datasets = prepare_datasets(root)
    uninterrupted, killed = (
        Workshop(datasets.raw, datasets.preprocessed, root / name) for name in ("uninterrupted", "killed")
    )
    for workshop in (uninterrupted, killed):
        workshop.encoder.parent.mkdir(parents=True)
        workshop.encoder.write_bytes(datasets.encoder.read_bytes())
    command_of(uninterrupted).finish()
    moments: Counter[str] = Counter()
    for moment in cycle(MOMENTS):
        if moments.total() == kills:
            break
        fold = killed.model(TRAINER) / "fold_0"
        process = command_of(killed).start()
        if wait_for(moment, fold, process, chance) and kill(process):
            moments[moment] += 1
            epoch = check_files(killed)
            print(f"kill {moments.total():2d}, {moment}: checkpoint of epoch {epoch}", flush=True)
        else:
            # The fold was done before the moment came: the next one begins where this one began.
            process.wait()
            for checkpoint in fold.glob("checkpoint_*.pth"):
                checkpoint.unlink()
    command_of(killed).finish()
    compare(uninterrupted, killed)
    print(f"{kills} kills: {', '.join(f'{count} in {moment}' for moment, count in moments.items())}")


def command_of(workshop: Workshop) -> Command:
    """nnUNetv2_train --c, which starts a fold that has no checkpoint."""
    variables = {
        "nnUNet_raw": str(workshop.raw),
        "nnUNet_preprocessed": str(workshop.preprocessed),
        "nnUNet_results": str(workshop.results),
        "nnUNet_extTrainer": str(external_trainers_folder()),
        "nnUNet_n_proc_DA": "0",
        "SWINFUSE_ITERATIONS_PER_EPOCH": "4",
        "SWINFUSE_VALIDATION_ITERATIONS_PER_EPOCH": "1",
    }
    words = ("-c", TRAIN, "901", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu", "--c")
    return Command(words, workshop.results / "output.txt", variables)


def wait_for(moment: str, fold: Path, process: Process, chance: random.Random) -> bool:
    """Returns at a random moment of a kind; False when the command ended before it came."""
    began = time.time()
    try:
        if moment == START:
            # From the imports to the first epoch; the model's plans are rewritten shortly before it.
            plans = fold.parent / "plans.json"
            if chance.random() < 0.5:
                time.sleep(chance.uniform(0, 8))
            else:
                until(lambda: plans.is_file() and plans.stat().st_mtime > began, process)
        elif moment == CHECKPOINT:
            until(lambda: any(fold.glob("checkpoint*.tmp.pth")), process)
        else:
            word = "Epoch" if moment == EPOCH else "Training done"
            until(lambda: any(word in path.read_text() for path in logs_since(fold, began)), process)
            time.sleep(chance.uniform(0, 3))
    except LostError:
        return process.poll() is None
    return True


def logs_since(fold: Path, began: float) -> list[Path]:
    return [path for path in fold.glob("training_log_*.txt") if path.stat().st_mtime > began]


def check_files(workshop: Workshop) -> int:
    """Reads every file that has its final name; returns the epochs of the furthest checkpoint."""
    model = workshop.model(TRAINER)
    epochs = [0]
    try:
        for path in model.glob("fold_0/checkpoint_*.pth"):
            if ".tmp" not in path.name:
                epochs.append(torch.load(path, map_location="cpu", weights_only=True)["current_epoch"])
        for path in model.glob(f"fold_0/{RECORD}"):
            json.loads(path.read_text())
    except Exception as error:
        raise LostError(f"a file is corrupt: {type(error).__name__}: {error}") from error
    return max(epochs)


def compare(uninterrupted: Workshop, killed: Workshop) -> None:
    """What must be there after all kills."""
    model, other = killed.model(TRAINER), uninterrupted.model(TRAINER)
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json", f"fold_0/{RECORD}"):
        ours, theirs = (
            (folder / name).read_text().replace(str(workshop.results), "")
            for folder, workshop in ((model, killed), (other, uninterrupted))
        )
        if json.loads(ours) != json.loads(theirs):
            raise LostError(f"{model / name} is not what it is without kills")
    path = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, map_location="cpu", weights_only=True)
    curve = content["logging"]["train_losses"]
    if content["current_epoch"] != EPOCHS or len(curve) != EPOCHS:
        raise LostError(f"{path}: {content['current_epoch']} epochs, {len(curve)} losses; expected {EPOCHS}")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    if not (model / "fold_0" / "validation" / "summary.json").is_file():
        raise LostError(f"{model}: no validation summary")
    left = [path for path in model.rglob("*") if ".tmp" in path.name]
    if left:
        raise LostError(f"temporary files are left: {', '.join(map(os.fspath, left))}")
