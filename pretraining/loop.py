"""The training loop: steps, validation, checkpoints, interruption and continuation. No framework inside."""

from __future__ import annotations

import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.weight_decay import weight_decay_groups
from pretraining.checkpoint import CHECKPOINT, TrainingState, save_checkpoint
from pretraining.collections.collection import DOMAINS
from pretraining.configuration import LOSS_WEIGHTS, Configuration
from pretraining.errors import InputError
from pretraining.model import PretrainingModel
from pretraining.monitoring.curves import draw_progress
from pretraining.monitoring.health import health_warnings
from pretraining.monitoring.log import RunLog, SilentLog
from pretraining.monitoring.panels import draw_reconstruction
from pretraining.monitoring.probes import FeatureProbes
from pretraining.monitoring.scalars import UnreadScalars
from pretraining.objective import ALONE_HERE, evaluate
from pretraining.out_of_memory import enough_memory
from pretraining.preprocessed.collection import millimetres
from pretraining.preprocessed.crops import CropDataset, PreprocessedCollection
from pretraining.processes import Processes
from pretraining.run_time import in_words
from pretraining.schedule import learning_rate
from pretraining.warm_start import initialize

READ_EVERY = 20
REMEDY = "The checkpoint in {folder} is from before. Start again with a lower --learning_rate or --gradient_clip."


class Interrupted(Exception):  # noqa: N818 - no error
    """The run was asked to stop; everything up to here is in its checkpoint."""


class DivergedError(InputError):
    """A loss was not finite; the last checkpoint is from before."""


def leave_signals(worker: int) -> None:
    """Processes that load crops leave Ctrl-C and SIGTERM to the one that trains, and end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Within, Ctrl-C and SIGTERM add their name to the list instead of ending the program; a second one ends it."""
    received: list[str] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def loading(loader: DataLoader[Any]) -> Iterator[Callable[[], Any]]:
    """Within, a function gives the next batch; behind it, the processes that load have ended, whatever happened.

    They do not listen to SIGTERM, by which Python ends what is left at its exit: it would wait for them for ever.
    """
    # The traceback of an error keeps all variables of the frames it came through, but not what a list held.
    batches = [iter(loader)]
    try:
        yield lambda: next(batches[0])
    finally:
        batches.clear()


def train(
    folder: Path,
    collection: PreprocessedCollection,
    configuration: Configuration,
    device: torch.device,
    state: TrainingState | None = None,
    initial: Encoder | None = None,
    processes: Processes = ALONE_HERE,
) -> PretrainingModel:
    """Trains to the configuration's last step, from the beginning or from a checkpoint's state.

    Args:
        folder: the run's folder: checkpoints, log, records, `progress.png` and `panels/` go here.
        collection: the preprocessed volumes.
        configuration: settings of the run.
        device: where to train; bf16 autocast is used on CUDA.
        state: a checkpoint's, to go on from.
        initial: an encoder to begin from, where there is no state.
        processes: those that train together; the first writes all files.

    Returns:
        The trained model.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, when the checkpoint is written.
        DivergedError: when a loss is not finite.
        InputError: when a checkpoint cannot be written.
    """
    asked, configuration = configuration, configuration.for_spacing(collection.spacing)
    torch.manual_seed(configuration.seed)
    model = PretrainingModel(configuration).to(device)
    optimizer = torch.optim.AdamW(
        weight_decay_groups(model, configuration.weight_decay), lr=configuration.learning_rate, betas=(0.9, 0.999)
    )
    step, bandwidth, seconds = 0, None, 0.0
    if state is not None:
        model.load_state_dict(state.network_weights)
        optimizer.load_state_dict(state.optimizer)
        step, seconds = state.step, state.seconds
        bandwidth = None if state.bandwidth is None else state.bandwidth.to(device)
    log = RunLog(folder, step, configuration.tensorboard) if processes.first else SilentLog()
    if initial is not None and state is None:
        log.say(f"Beginning from {initial.path}. {initialize(model, initial)}")
    trained = processes.wrap(model, device)
    samples = processes.samples(configuration.batch_size)
    loader = DataLoader(
        CropDataset(
            collection, "train", configuration.crop_size, configuration.batch_size,
            seed=configuration.seed, foreground_share=configuration.foreground_share, steps=configuration.steps,
            samples=samples, domains=configuration.modalities,
        ),
        batch_size=None,
        sampler=range(step, configuration.steps),
        num_workers=configuration.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals,
    )  # fmt: skip
    log.say(
        f"{'Going on at' if step else 'Starting at'} step {step} of {configuration.steps} on {device}"
        f"{f' and {processes.world_size - 1} more' if processes.world_size > 1 else ''}, "
        f"collection {collection.name}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
    )
    for note in collection.reading_notes(configuration.crop_size):
        log.say(note)
    if asked.quarter_turns and not configuration.quarter_turns:
        log.say(
            f"The spacing is {millimetres(collection.spacing)} (z, y, x), not isotropic in the axial plane: "
            "no quarter turns and no rotation task. With --spacing y and x can be made equal"
        )

    def read_values() -> None:
        for taken, values in unread.read():
            if not (math.isfinite(values["total"]) and math.isfinite(values["gradient_norm"])):
                raise DivergedError(
                    f"step {taken - 1}: the loss is {values['total']}, its gradient's norm {values['gradient_norm']} "
                    f"({_words(values)}). {REMEDY.format(folder=folder)}"
                )
            log.record(taken, "train", {**values, "learning_rate": learning_rate(taken - 1, configuration)})
            bar.set_postfix_str(_words({name: values[name] for name in LOSS_WEIGHTS if name in values}))

    def save() -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise DivergedError(f"step {step}: weights are not finite. {REMEDY.format(folder=folder)}")
        if not processes.first:
            return
        save_checkpoint(
            TrainingState(
                step=step,
                network_weights=model.state_dict(),
                optimizer=optimizer.state_dict(),
                bandwidth=bandwidth,
                configuration=asked,
                collection={"name": collection.name, "hash": collection.hash},
                spacing=tuple(collection.spacing),
                seconds=seconds,
            ),
            folder / CHECKPOINT,
        )

    # Reading a value makes a GPU finish all that was asked of it: there, many steps are read at once.
    unread = UnreadScalars(1 if device.type == "cpu" else READ_EVERY)
    with (
        stop_signals() as stop,
        loading(loader) as next_batch,
        tqdm(total=configuration.steps, initial=step, unit="step", smoothing=0.1, disable=not processes.first) as bar,
    ):
        if configuration.steps == 0:
            save()
        while step < configuration.steps:
            start = time.perf_counter()
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, configuration)
            batch = _on(next_batch(), device)
            with enough_memory(configuration, device, len(samples)):
                evaluation = evaluate(trained, batch, configuration, step, bandwidth, processes=processes)
            optimizer.zero_grad(set_to_none=True)
            with enough_memory(configuration, device, len(samples)):
                evaluation.total.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), configuration.gradient_clip)
                optimizer.step()
            bandwidth = evaluation.bandwidth
            step += 1
            seconds += time.perf_counter() - start
            unread.add(step, {**evaluation.values(), "gradient_norm": norm})
            last = step == configuration.steps
            validating = step % configuration.validate_every == 0 or last
            if unread.due or validating:
                read_values()
            bar.update()
            if validating:
                means = validate(
                    model, collection, configuration, device, step, bandwidth, folder / "panels", processes
                )
                log.record(step, "validation", means)
                log.say(f"step {step}: validation {_words(means)}")
                for warning in health_warnings(means, step / configuration.steps):
                    log.say(f"WARNING: {warning}")
                if processes.first:
                    draw_progress(folder)
            stopped = processes.any(bool(stop))
            if stopped or last or step % configuration.checkpoint_every == 0:
                read_values()
                save()
            if stopped and not last:
                if processes.first:
                    draw_progress(folder)
                raise Interrupted(
                    f"{stop[0] if stop else 'another process was stopped'} at step {step}; saved {folder / CHECKPOINT}"
                )
    log.say(f"Done: {configuration.steps} steps in {in_words(seconds)}")
    log.close()
    return model


@torch.no_grad()
def validate(
    model: PretrainingModel,
    collection: PreprocessedCollection,
    configuration: Configuration,
    device: torch.device,
    step: int,
    bandwidth: torch.Tensor | None,
    panels: Path,
    processes: Processes = ALONE_HERE,
) -> dict[str, float]:
    """Means of losses and health over the same validation crops and views each time, and a picture of one.

    Args:
        panels: folder of the pictures, one a validation.
        processes: those that train together; all must call this, each evaluates its part of every batch.
    """
    model.eval()
    crops = CropDataset(
        collection, "validation", configuration.crop_size, configuration.batch_size,
        seed=configuration.seed, foreground_share=1.0, steps=configuration.validation_batches,
        samples=processes.samples(configuration.batch_size), domains=configuration.modalities,
    )  # fmt: skip
    values: dict[str, list[float]] = defaultdict(list)
    probes = FeatureProbes()
    for index in range(len(crops)):
        batch = _on(crops[index], device)
        evaluation = evaluate(model, batch, configuration, index, bandwidth, True, processes)
        probes.add(model, batch)
        for name, value in evaluation.values().items():
            values[name].append(float(value))
        if index == 0 and processes.first:
            draw_reconstruction(panels / f"step_{step:07d}.png", evaluation.panels(), f"validation, step {step}")
    # Some are not measured on every batch: attention differs only where crops are co-located.
    return {**{name: fmean(measured) for name, measured in values.items()}, **probes.results()}


def _on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Crops on the device; what the host reads of them stays, or it would wait for the device in every step."""
    return {
        name: value.to(device, non_blocking=True) if name.upper() in DOMAINS else value for name, value in batch.items()
    }


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {float(value):.3f}" for name, value in values.items())
