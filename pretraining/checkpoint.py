"""Checkpoints of a pretraining run: plain tensors and values, written atomically, loaded without executing code."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.encoder_file import READING_ERRORS, Encoder, network_settings, save_encoder
from nnunetv2_swinfuse.architecture.torch_file import TorchFileError, load_torch_file, save_torch_file
from nnunetv2_swinfuse.errors import UPGRADE, InputError
from pretraining.configuration import Configuration
from pretraining.model import NETWORK_HEAD, PretrainingModel
from pretraining.nnssl_plan import encoder_details

# The checkpoint in a run's folder.
CHECKPOINT = "checkpoint_latest.pth"
FORMAT = "swinfuse-pretraining"
# 2: the inpainting head sees the embedding; 3: the Domain Invariance Module's cells and positions share one geometry;
# 4: other heads, and densities are matched at several levels.
FORMAT_VERSION = 4
# A full or read-only disk, or a folder of another user.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
RESTORE = "Restore it from a copy, or delete it and start the run again without --c."


@dataclass
class TrainingState:
    """What a run needs to be resumed exactly.

    The random state of crops, views and losses is (seed, step), see `pretraining.randomness`; the state of the
    schedules is the step. bf16 autocast needs no gradient scaler.

    Attributes:
        step: optimiser steps taken.
        network_weights: all tensors of the model, on the CPU.
        optimizer: state of the optimiser.
        averages: running averages of the density loss, by level: bandwidth and floor.
        configuration: settings of the run.
        collection: name and hash of the collection, and hash of its split, which earlier versions did not write.
        spacing: voxel spacing of the preprocessed volumes in mm (z, y, x).
        seconds: time spent in steps so far.
        versions: versions of the packages that wrote it.
    """

    step: int
    network_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    averages: dict[str, Tensor]
    configuration: Configuration
    collection: dict[str, str]
    spacing: tuple[float, ...]
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=lambda: {"torch": str(torch.__version__)})

    @property
    def network_settings(self) -> dict[str, Any]:
        """Arguments of the segmentation network that is pretrained as a whole; empty where only an encoder is."""
        head = {
            name.removeprefix(NETWORK_HEAD): weight
            for name, weight in self.network_weights.items()
            if name.startswith(NETWORK_HEAD)
        }
        return network_settings(head, self.configuration.encoder_settings)


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Writes a checkpoint; replaces an older one at `path` only by a complete file.

    Raises:
        InputError: naming the file and the free space, when the disk is full or the folder cannot be written to.
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
        "density_averages": {level: values.detach().cpu() for level, values in state.averages.items()},
        "configuration": state.configuration.to_dict(),
        "collection": state.collection,
        "spacing": list(state.spacing),
        "strides": [list(stride) for stride in state.configuration.strides],
        "seconds": state.seconds,
        "versions": state.versions,
    }
    with explain_write_errors(path):
        save_torch_file(content, path)


def load_checkpoint(path: Path) -> TrainingState:
    """Reads a checkpoint.

    Raises:
        InputError: naming the file, when it is missing or damaged, or no checkpoint of this format.
    """
    if not path.is_file():
        raise InputError(f"{path}: no checkpoint to resume from. Start the run without --c.")
    try:
        content = load_torch_file(path)
    except TorchFileError as error:
        raise InputError(f"{error}. {RESTORE}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        kind = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: not a checkpoint of swinfuse_pretrain (found {kind!r}, expected {FORMAT!r})")
    version = content.get("format_version")
    if type(version) is int and version < FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {version}, of an older version with another network; this installation "
            f"resumes from format {FORMAT_VERSION}. Start again without --c, with --overwrite"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {version}, this installation reads format {FORMAT_VERSION}. "
            f"To resume it, {UPGRADE}"
        )
    try:
        state = TrainingState(
            step=content["step"],
            network_weights=content["network_weights"],
            optimizer=content["optimizer_state"],
            averages=content["density_averages"],
            configuration=Configuration.of_run(content["configuration"], str(path)),
            collection=content["collection"],
            spacing=tuple(content["spacing"]),
            seconds=content["seconds"],
            versions=content["versions"],
        )
        _check_weights(state)
    except READING_ERRORS as error:
        raise InputError(f"{path}: damaged checkpoint ({type(error).__name__}: {error}). {RESTORE}") from error
    return state


def _check_weights(state: TrainingState) -> None:
    """Raises ValueError for weights that are not finite or not those of the configuration's network."""
    with torch.device("meta"):
        expected = PretrainingModel(state.configuration, state.network_settings).state_dict()
    differing = sorted(expected.keys() ^ state.network_weights.keys())
    differing += [
        n for n, weight in state.network_weights.items() if n in expected and weight.shape != expected[n].shape
    ]
    if differing:
        raise ValueError(f"{len(differing)} tensors are not those of its configuration, such as {differing[0]}")
    for name, weight in state.network_weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")


def export_encoder(
    model: PretrainingModel,
    configuration: Configuration,
    collection: dict[str, str],
    spacing: tuple[float, ...],
    path: Path,
    normalisation: dict[str, Any] | None = None,
    orientation: str | None = None,
) -> Encoder:
    """Writes the encoder of a finished run to `path`, with all the information that planning and transfer need."""
    decoder_weights = model.decoder_weights()
    network = network_settings(decoder_weights, configuration.encoder_settings)
    encoder = Encoder(
        weights=model.encoder_weights(),
        decoder_weights=decoder_weights,
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
            "orientation": orientation,
            **encoder_details(configuration, collection, spacing, network),
        },
    )
    with explain_write_errors(path):
        save_encoder(encoder, path)
    return encoder


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turns a failed write into an InputError that names the file and the free space."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: could not be written ({error}); {free_space(path.parent)}. Free some space or check the folder's "
            "permissions; the last complete checkpoint is kept, if there is one: resume with --c."
        ) from error
    except RuntimeError as error:
        # torch's zip writer reports a failed write as a RuntimeError.
        if "write" not in str(error) and "file" not in str(error):
            raise
        raise InputError(
            f"{path}: could not be written ({str(error).splitlines()[0]}); {free_space(path.parent)}. "
            "The last complete checkpoint is kept, resume with --c."
        ) from error


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Does the same for a block that writes many files of a run and does other things; other OSErrors stay as they are.

    Args:
        folder: of the run.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        with explain_write_errors(folder):
            raise


def free_space(folder: Path) -> str:
    """Describes the free space on the disk of a folder, or where that is missing, of the one above it."""
    folder = next(existing for existing in (folder, *folder.absolute().parents) if existing.exists())
    return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB are free in {folder}"
