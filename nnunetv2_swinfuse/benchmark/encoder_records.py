"""What the pretrainings of an experiment leave: their encoders, what these have seen, and how long they took."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.architecture.encoder_file import PUBLISHED
from nnunetv2_swinfuse.architecture.file_hash import file_hash
from nnunetv2_swinfuse.benchmark.arms import Arm
from nnunetv2_swinfuse.benchmark.cells import Workspace
from nnunetv2_swinfuse.benchmark.experiment import Experiment, PretrainingRun
from nnunetv2_swinfuse.errors import BenchmarkError

# Within the folder of a pretraining: its record, its encoder, and SHA-256 of the volumes that it learnt from.
ENCODER = "encoder.json"
PUBLISHED_ENCODER = f"nnUNet_results/{PUBLISHED}"
VOLUMES = "volumes.json"
# Settings that do not change what is learnt, or that may differ between seeds: a budget in minutes gives each another
# number of steps, and another machine may measure the same intensities with another last digit.
NOT_LEARNT = (
    "seed", "steps", "ct_intensities", "workers", "device", "tensorboard", "checkpoint_every", "checkpointing",
    "validate_every", "validation_batches",
)  # fmt: skip


def seen_cases(folder: Path, images: Mapping[str, Sequence[str]]) -> list[str]:
    """Which cases a pretraining learnt from an image of.

    Args:
        folder: of the pretraining.
        images: SHA-256 of what the images of each case hold.
    """
    learnt = set(json.loads((folder / VOLUMES).read_text()))
    return sorted(case for case, digests in images.items() if learnt & set(digests))


def encoder_of(experiment: Experiment, arm: Arm, seed: int, workspace: Workspace) -> dict[str, Any] | None:
    """The record of the encoder that a run of an arm begins with, None for an arm without one.

    Raises:
        BenchmarkError: when its pretraining is not done.
    """
    if arm.encoder:
        path = Path(arm.encoder).absolute()
        return {"recipe": "", "path": str(path), "sha256": file_hash(path), "collections": None}
    run = experiment.pretraining_run(arm, seed)
    if run is None:
        return None
    folder = workspace.pretraining(run)
    if not (folder / ENCODER).is_file():
        raise BenchmarkError(f"{folder / ENCODER}: missing; the pretraining {run.name} is not done")
    return {**json.loads((folder / ENCODER).read_text()), "path": str(folder / PUBLISHED_ENCODER)}


def pretraining_seconds(experiment: Experiment, workspace: Workspace, run: PretrainingRun) -> float | None:
    """Median duration of the finished pretrainings that differ in their seed only, else the budget in minutes.

    None where there is neither; 0 where no weights are needed.
    """
    if not experiment.weights_needed(run):
        return 0.0
    alike = []
    for path in workspace.root.glob(f"pretraining/*/{ENCODER}"):
        record = json.loads(path.read_text())
        # Records of earlier versions have no settings.
        if (record["recipe"], record.get("settings")) == (run.recipe, dict(run.settings)):
            alike.append(float(record["seconds"]))
    if alike:
        return statistics.median(alike)
    minutes = experiment.pretraining.minutes if experiment.pretraining else None
    return None if minutes is None else minutes * 60


def learning_settings(results: Path) -> dict[str, Any]:
    """The settings that decide what the only run in a results folder of `swinfuse_pretrain` has learnt.

    Recipes and presets give most of them; these may differ between versions of this package.

    Raises:
        BenchmarkError: for another number of runs.
    """
    from pretraining.monitoring.report import CONFIGURATION

    settings = json.loads(_only(results, CONFIGURATION).read_text())
    return {name: value for name, value in settings.items() if name not in NOT_LEARNT}


def training_seconds(results: Path) -> float:
    """How long the only run in a results folder of `swinfuse_pretrain` has trained, from its checkpoint.

    Raises:
        BenchmarkError: for another number of runs.
    """
    from nnunetv2_swinfuse.architecture.torch_file import map_torch_file
    from pretraining.checkpoint import CHECKPOINT

    return float(map_torch_file(_only(results, CHECKPOINT))["seconds"])


def _only(results: Path, name: str) -> Path:
    """The file of this name in the folder of the only run."""
    found = list(results.glob(f"*/swinfuse__*/{name}"))
    if len(found) != 1:
        raise BenchmarkError(f"{results}: {len(found)} runs with a {name}, expected 1; move others away")
    return found[0]
