"""One run in one process: the last checks, training, the encoder's file and its publication."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pretraining.checkpoint import CHECKPOINT, TrainingState, export_encoder, load_checkpoint, write_or_explain
from pretraining.configuration import Configuration
from pretraining.errors import InputError
from pretraining.loop import DivergedError, Interrupted, train
from pretraining.monitoring.report import REPORT, write_facts, write_report
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.processes import Processes, joined, started_again
from pretraining.warm_start import load_initial


@dataclass(frozen=True)
class Run:
    """What to train, and where; every process of a run gets the same.

    Attributes:
        folder: of the run.
        preprocessed: of the volumes.
        configuration: settings.
        published: where the finished encoder is copied to.
        command: that began it, for the report.
        continuation: the command that goes on with it after a stop.
        go_on: from the checkpoint in the folder.
        overwrite: what the folder holds.
    """

    folder: Path
    preprocessed: Path
    configuration: Configuration
    published: Path
    command: str
    continuation: str
    go_on: bool = False
    overwrite: bool = False

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT


def carry_out(run: Run, again: bool = False) -> bool:
    """Trains and publishes; alone, or as one of the processes that torchrun or `-num_gpus` has started.

    Args:
        run: what to do.
        again: a process of this run has failed before, so go on from its last checkpoint, if it has come that far.

    Returns:
        Whether this process is the one to tell of it.

    Raises:
        InputError: when volumes or checkpoint do not fit, or the processes are not alike.
        Interrupted: see :func:`train`.
    """
    volumes = PreprocessedCollection.open(run.preprocessed)
    configuration = run.configuration
    with joined(configuration.device) as processes:
        state, initial = None, None
        if run.go_on or (again and run.checkpoint.exists()):
            state = load_checkpoint(run.checkpoint)
            if state.collection["hash"] != volumes.hash:
                raise InputError(
                    f"{run.folder}: the run was made with other volumes of {state.collection['name']} than are there "
                    "now. Restore them, or start again with --overwrite"
                )
        else:
            _, initial = load_initial(configuration)
        # All have read what was there before one writes.
        processes.require_equal(facts(configuration, volumes, state))
        device = find_device(configuration, processes)
        if processes.first:
            prepare_folder(run, state)
            write_facts(run.folder, run.command, volumes, device)
        processes.wait()
        try:
            model = train(run.folder, volumes, configuration, device, state, initial, processes)
        except (DivergedError, Interrupted) as stopped:
            if processes.first:
                diverged = isinstance(stopped, DivergedError)
                reason = f"Stopped: {stopped}" if diverged else f"{stopped}. Go on with: {run.continuation}"
                write_report(run.folder, reason)
            raise
        if processes.first:
            encoder = run.folder / "encoder.pth"
            identity = {"name": volumes.name, "hash": volumes.hash}
            normalisation = volumes.header.get("normalisation", {})
            export_encoder(model, configuration, identity, tuple(volumes.spacing), encoder, normalisation)
            publish(encoder, run.published)
            write_or_explain(lambda: write_report(run.folder), run.folder / REPORT)
        return processes.first


def goes_on(checkpoint: Path, asked: bool) -> bool:
    """Whether a command goes on from a checkpoint: when asked to, or when it was started again and there is one."""
    return asked or (started_again() and checkpoint.exists())


def facts(configuration: Configuration, volumes: PreprocessedCollection, state: TrainingState | None) -> dict[str, Any]:
    """What must be the same for all processes."""
    return {
        "version of torch": str(torch.__version__),
        "version of nnunetv2-swinfuse": version("nnunetv2-swinfuse"),
        "hash of the volumes": volumes.hash,
        "step to begin at": state.step if state else 0,
        **configuration.to_dict(),
    }


def prepare_folder(run: Run, state: TrainingState | None) -> None:
    """Makes the run's folder, empty unless the run goes on, with its settings and without what killed writers left."""
    if run.overwrite and state is None and run.folder.exists():
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    for left in run.folder.rglob("*.tmp*"):
        left.unlink(missing_ok=True)
    (run.folder / "configuration.json").write_text(json.dumps(run.configuration.to_dict(), indent=4) + "\n")


def find_device(configuration: Configuration, processes: Processes | None = None) -> torch.device:
    """The torch device a configuration asks for; of several processes, each has a GPU of its own.

    Raises:
        InputError: when CUDA is asked for and not there.
    """
    if configuration.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch sees no GPU here; use --device cpu, or -p tiny for a trial")
    if configuration.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if processes is None or processes.world_size == 1:
        return torch.device("cuda")
    return torch.device("cuda", processes.local_rank)


def publish(encoder: Path, published: Path) -> None:
    """Makes a run's encoder the one that fine-tuning takes; readers never see half a file."""

    def copy() -> None:
        published.parent.mkdir(parents=True, exist_ok=True)
        temporary = published.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(encoder, temporary)
        os.replace(temporary, published)

    write_or_explain(copy, published)
