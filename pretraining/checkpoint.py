"""Checkpoints of a pretraining run: plain tensors and values, written atomically, read without code execution."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.encoder_file import Encoder, save_atomically, save_encoder
from nnunetv2_swinfuse.plain_loading import PlainFileError, load_plain
from pretraining.configuration import Configuration
from pretraining.errors import InputError
from pretraining.model import PretrainingModel
from pretraining.nnssl_plan import encoder_details

# The checkpoint in a run's folder.
CHECKPOINT = "checkpoint_latest.pth"
FORMAT = "swinfuse-pretraining"
# 2: the inpainting head sees the embedding.
FORMAT_VERSION = 2


@dataclass
class TrainingState:
    """What a run needs to go on exactly where it was.

    The random state of crops, views and losses is (seed, step), see `pretraining.randomness`; the schedule's is the
    step. bf16 autocast needs no gradient scaler.

    Attributes:
        step: optimiser steps taken.
        network_weights: all tensors of the model, on the CPU.
        optimizer: state of the optimiser.
        bandwidth: running average of the density loss's bandwidth, None before its first step.
        configuration: settings of the run.
        collection: name and hash of the collection.
        spacing: voxel spacing of the preprocessed volumes in mm (z, y, x).
        seconds: time spent in steps so far.
    """

    step: int
    network_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    bandwidth: Tensor | None
    configuration: Configuration
    collection: dict[str, str]
    spacing: tuple[float, ...]
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=lambda: {"torch": str(torch.__version__)})


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Writes a checkpoint; an older one at `path` is replaced only by a complete file.

    Raises:
        InputError: naming the folder and the space left, when the disk is full or the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "network_weights": {name: tensor.detach().cpu() for name, tensor in state.network_weights.items()},
        "optimizer_state": state.optimizer,
        "scheduler_state": {"step": state.step},
        "grad_scaler_state": None,
        "random_state": {"seed": state.configuration.seed, "step": state.step},
        "bandwidth": state.bandwidth,
        "configuration": state.configuration.to_dict(),
        "collection": state.collection,
        "spacing": list(state.spacing),
        "strides": [list(stride) for stride in state.configuration.strides],
        "seconds": state.seconds,
        "versions": state.versions,
    }
    write_or_explain(lambda: save_atomically(content, path), path)


def load_checkpoint(path: Path) -> TrainingState:
    """Reads a checkpoint.

    Raises:
        InputError: naming the file, when it is missing, corrupted, of another kind or of another format.
    """
    if not path.is_file():
        raise InputError(f"{path}: no checkpoint to go on from. Start the run without --c.")
    try:
        content = load_plain(path)
    except PlainFileError as error:
        raise InputError(
            f"{path}: corrupted checkpoint ({str(error).removeprefix(f'{path}: ')}). "
            "Restore it from a copy, or delete it and start the run again without --c."
        ) from error
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of swinfuse_pretrain (found {content.get('format')!r}, expected {FORMAT!r})"
        )
    if content["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {content['format_version']}, this installation reads up to {FORMAT_VERSION}. "
            "Upgrade with: pip install --upgrade nnunetv2-swinfuse"
        )
    if content["format_version"] < FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {content['format_version']}, of an older version with other heads; this one "
            f"goes on from format {FORMAT_VERSION}. Start again without --c; an encoder.pth of that version can still "
            "be fine-tuned, or given as --init_from"
        )
    return TrainingState(
        step=content["step"],
        network_weights=content["network_weights"],
        optimizer=content["optimizer_state"],
        bandwidth=content["bandwidth"],
        configuration=Configuration.from_dict(content["configuration"], str(path)),
        collection=content["collection"],
        spacing=tuple(content["spacing"]),
        seconds=content["seconds"],
        versions=content["versions"],
    )


def export_encoder(
    model: PretrainingModel,
    configuration: Configuration,
    collection: dict[str, str],
    spacing: tuple[float, ...],
    path: Path,
    normalisation: dict[str, Any] | None = None,
) -> Encoder:
    """Writes the encoder of a finished run to `path`, with all that planning and transfer need to know."""
    encoder = Encoder(
        weights=model.encoder_weights(),
        settings=configuration.encoder_settings,
        strides=configuration.topology.strides,
        input_channels=1,
        spacing=tuple(spacing),
        modalities=configuration.modalities,
        collection=dict(collection),
        source=str(path),
        details={
            "configuration": configuration.to_dict(),
            "normalisation": dict(normalisation or {}),
            **encoder_details(configuration, collection, spacing),
        },
    )
    write_or_explain(lambda: save_encoder(encoder, path), path)
    return encoder


def write_or_explain(write: Any, path: Path) -> None:
    """Runs `write`; an OSError becomes an InputError that names the path and the space left."""
    try:
        write()
    except OSError as error:
        raise InputError(
            f"{path}: could not be written ({error}); {free_space(path.parent)}. Free some space or check the folder's "
            "rights; the last complete checkpoint is kept, go on with --c."
        ) from error
    except RuntimeError as error:
        # torch's zip writer reports a failed write as a RuntimeError.
        if "write" not in str(error) and "file" not in str(error):
            raise
        raise InputError(
            f"{path}: could not be written ({str(error).splitlines()[0]}); {free_space(path.parent)}. "
            "The last complete checkpoint is kept, go on with --c."
        ) from error


def free_space(folder: Path) -> str:
    """Free space of the disk that holds a folder, in words."""
    return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB are free in {folder}"
