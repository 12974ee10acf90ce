"""One pretraining run in one process: last checks, training, export of the encoder, publication."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write, is_temporary
from nnunetv2_swinfuse.architecture.encoder_file import ENCODER_FILE
from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import (
    CHECKPOINT,
    TrainingState,
    explain_full_disk,
    explain_write_errors,
    export_encoder,
    load_checkpoint,
)
from pretraining.configuration import Configuration
from pretraining.interruption import Interrupted
from pretraining.loop import DivergedError, train
from pretraining.monitoring.report import CONFIGURATION, REPORT, write_facts, write_report
from pretraining.preprocessed.collection import PreprocessedCollection, format_spacing
from pretraining.processes import Processes, process_group, was_restarted
from pretraining.warm_start import load_initial

if TYPE_CHECKING:
    from pretraining.model import PretrainingModel
    from pretraining.voxel_probe.organ_probe import OrganDatasets


@dataclass(frozen=True)
class Run:
    """What to train, and where; all processes of a run get the same.

    Attributes:
        folder: results of the run.
        preprocessed: folder of the preprocessed volumes.
        configuration: settings.
        published: where the finished encoder is copied to.
        command: command line that started the run, for the report.
        resume_command: command line that resumes it after an interruption.
        resume: start from the checkpoint in the folder.
        overwrite: delete what the folder holds.
        organs: labelled datasets of the organ probe, None without one.
    """

    folder: Path
    preprocessed: Path
    configuration: Configuration
    published: Path
    command: str
    resume_command: str
    resume: bool = False
    overwrite: bool = False
    organs: OrganDatasets | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT


def run_pretraining(run: Run, restarted: bool = False) -> bool:
    """Trains and publishes, as a single process or as one of those that torchrun or `-num_gpus` has started.

    Args:
        run: what to do.
        restarted: a process of this run has failed before, so resume from its last checkpoint, if there is one.

    Returns:
        Whether this process is the one that reports to the user.

    Raises:
        InputError: when the volumes or the checkpoint do not fit, the processes differ, or a file cannot be written.
        Interrupted: see :func:`train`.
    """
    volumes = PreprocessedCollection.open(run.preprocessed)
    configuration = run.configuration
    with process_group(configuration.device) as processes:
        state, initial = None, None
        if run.resume or (restarted and run.checkpoint.exists()):
            state = load_checkpoint(run.checkpoint)
            require_same_volumes(run, state, volumes)
        else:
            _, initial = load_initial(configuration)
        # All processes have read the files before the first one writes.
        processes.require_equal(facts(configuration, volumes, state))
        device = find_device(configuration, processes)
        with explain_full_disk(run.folder):
            if processes.first:
                prepare_folder(run, state)
                write_facts(run.folder, run.command, volumes, device)
            organ_probe = prepare_organ_probe(run) if run.organs is not None and processes.first else None
            processes.wait()
            try:
                model = train(run.folder, volumes, configuration, device, state, initial, processes, organ_probe)
            except (DivergedError, Interrupted) as stopped:
                if processes.first:
                    diverged = isinstance(stopped, DivergedError)
                    reason = f"Stopped: {stopped}" if diverged else f"{stopped}. Resume with: {run.resume_command}"
                    write_report(run.folder, reason)
                raise
        if processes.first:
            encoder = run.folder / ENCODER_FILE
            identity = {"name": volumes.name, "hash": volumes.hash}
            normalisation = volumes.header.get("normalisation", {})
            export_encoder(
                model, configuration, identity, tuple(volumes.spacing), encoder, normalisation, volumes.orientation
            )
            publish(encoder, run.published)
            with explain_write_errors(run.folder / REPORT):
                write_report(run.folder)
        return processes.first


def prepare_organ_probe(run: Run) -> Callable[[PretrainingModel], dict[str, float]]:
    """The organ probe of a run, with its floors measured; raises InputError for cases that cannot be used."""
    # They import nnunetv2, which training without a probe does not need.
    from pretraining.voxel_probe.encoders import collection_normalisation
    from pretraining.voxel_probe.organ_probe import OrganProbe

    assert run.organs is not None
    normalisation = collection_normalisation(str(run.preprocessed), run.organs.preprocessed)
    return OrganProbe.prepare(run.organs, normalisation, run.configuration, run.folder).measure


def require_same_volumes(run: Run, state: TrainingState, volumes: PreprocessedCollection) -> None:
    """Raises InputError when a run would be resumed on other volumes, at another spacing, or with another split."""
    if state.collection["hash"] != volumes.hash:
        raise InputError(
            f"{run.folder}: the run was started on {state.collection['name']} with other volumes than "
            f"{run.preprocessed} holds now. Restore them, or start again with --overwrite"
        )
    if not np.allclose(state.spacing, volumes.spacing, atol=1e-5):
        raise InputError(
            f"{run.folder}: the run was started at {format_spacing(state.spacing)}, but {run.preprocessed} holds "
            f"{format_spacing(volumes.spacing)} now. Preprocess again with --spacing "
            f"{' '.join(f'{distance:.6g}' for distance in state.spacing)}, or start again with --overwrite"
        )
    if state.collection.get("split", volumes.split_hash) != volumes.split_hash:
        raise InputError(
            f"{run.folder}: the run was started with other patients in validation than {run.preprocessed} has now, so "
            "that patients would be in both. Preprocess again with the first --seed, or start again with --overwrite"
        )


def remove_checkpoint(run: Run) -> None:
    """Deletes the checkpoint of an earlier run, so that a restarted command cannot take it for its own."""
    with explain_write_errors(run.checkpoint):
        run.checkpoint.unlink(missing_ok=True)


def should_resume(checkpoint: Path, requested: bool) -> bool:
    """Whether a command resumes from a checkpoint: on request, or when it was restarted and a checkpoint exists."""
    return requested or (was_restarted() and checkpoint.exists())


def facts(configuration: Configuration, volumes: PreprocessedCollection, state: TrainingState | None) -> dict[str, Any]:
    """What must be equal in all processes, by a name for the message."""
    return {
        "version of torch": str(torch.__version__),
        "version of nnunetv2-swinfuse": version("nnunetv2-swinfuse"),
        "hash of the volumes": volumes.hash,
        "first step": state.step if state else 0,
        **configuration.to_dict(),
    }


def prepare_folder(run: Run, state: TrainingState | None) -> None:
    """Creates the run's folder with its settings; removes temporary files of killed processes, or everything."""
    if run.overwrite and state is None and run.folder.exists():
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    for temporary in filter(is_temporary, run.folder.rglob("*")):
        temporary.unlink(missing_ok=True)
    with atomic_write(run.folder / CONFIGURATION) as temporary:
        temporary.write_text(json.dumps(run.configuration.to_dict(), indent=4) + "\n")


def find_device(configuration: Configuration, processes: Processes | None = None) -> torch.device:
    """The torch device that a configuration selects; each of several processes has its own GPU.

    Raises:
        InputError: when CUDA is selected but not available.
    """
    if configuration.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch sees no GPU here; use --device cpu, or -p tiny for a trial")
    if configuration.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if processes is None or processes.world_size == 1:
        return torch.device("cuda")
    return torch.device("cuda", processes.local_rank)


def publish(encoder: Path, published: Path) -> None:
    """Copies a run's encoder to where fine-tuning looks for it; readers never see an incomplete file."""
    with explain_write_errors(published), atomic_write(published) as temporary:
        shutil.copyfile(encoder, temporary)
