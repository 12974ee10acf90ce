"""The training loop in plain PyTorch: steps, validation, checkpoints, interruption and resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.weight_decay import weight_decay_groups
from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import CHECKPOINT, TrainingState, save_checkpoint
from pretraining.configuration import Configuration
from pretraining.interruption import Interrupted, ignore_stop_signals, stop_signals
from pretraining.model import PretrainingModel
from pretraining.monitoring.curves import draw_progress
from pretraining.monitoring.health import health_warnings
from pretraining.monitoring.log import RunLog, SilentLog
from pretraining.monitoring.panels import PANELS_FOLDER
from pretraining.monitoring.scalars import UnreadScalars
from pretraining.objective import evaluate
from pretraining.out_of_memory import explain_out_of_memory
from pretraining.preprocessed.batches import repetition_notes
from pretraining.preprocessed.collection import PreprocessedCollection, format_spacing
from pretraining.preprocessed.crops import CropDataset
from pretraining.preprocessed.splits import SPLITS
from pretraining.preprocessed.turnable import turning_notes
from pretraining.processes import SINGLE_PROCESS, Processes
from pretraining.run_time import format_duration
from pretraining.schedule import learning_rate
from pretraining.settings import LOSS_WEIGHTS
from pretraining.token_statistics import DensityAverages
from pretraining.validation import to_device, validate
from pretraining.warm_start import initialize

READ_EVERY = 20
REMEDY = "The checkpoint in {folder} is older. Start again with a lower --learning_rate or --gradient_clip."


class DivergedError(InputError):
    """A loss, a gradient or a weight is not finite; the last checkpoint was written before that."""


@dataclass
class Training:
    """What changes from step to step.

    Attributes:
        model: the model.
        optimizer: optimizer of its parameters.
        step: steps taken so far.
        averages: running averages of the density loss, by level.
        seconds: time spent in steps so far.
    """

    model: PretrainingModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    averages: DensityAverages = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def start(
        cls,
        configuration: Configuration,
        device: torch.device,
        state: TrainingState | None,
        initial: Encoder | None = None,
    ) -> Training:
        """A training with random weights, or one that resumes from the state of a checkpoint.

        `initial` is an encoder whose weights the model will get: a network that was pretrained as a whole keeps its
        width.
        """
        torch.manual_seed(configuration.seed)
        earlier = state or initial
        model = PretrainingModel(configuration, earlier.network_settings if earlier else None).to(device)
        optimizer = torch.optim.AdamW(
            weight_decay_groups(model, configuration.weight_decay), lr=configuration.learning_rate, betas=(0.9, 0.999)
        )
        if state is None:
            return cls(model, optimizer)
        model.load_state_dict(state.network_weights)
        optimizer.load_state_dict(state.optimizer)
        averages = {level: values.to(device) for level, values in state.averages.items()}
        return cls(model, optimizer, state.step, averages, state.seconds)

    def take_step(
        self,
        batch: Mapping[str, torch.Tensor],
        configuration: Configuration,
        wrapped_model: torch.nn.Module | None = None,
        processes: Processes = SINGLE_PROCESS,
    ) -> dict[str, torch.Tensor]:
        """One step of the optimiser.

        Args:
            batch: as :func:`pretraining.objective.evaluate` takes it, on the model's device.
            configuration: settings of the run, for the collection's spacing.
            wrapped_model: `model` as `processes` wrapped it; by default the model.
            processes: those that train together.

        Returns:
            Losses, `total`, measures of health and `gradient_norm` (before clipping); scalars that are still on the
            device.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, configuration)
        evaluation = evaluate(
            wrapped_model or self.model, batch, configuration, self.step, self.averages, processes=processes
        )
        self.optimizer.zero_grad(set_to_none=True)
        evaluation.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), configuration.gradient_clip)
        self.optimizer.step()
        self.averages = evaluation.averages
        self.step += 1
        return {**evaluation.scalars(), "gradient_norm": norm}

    def save(self, folder: Path, configuration: Configuration, collection: PreprocessedCollection) -> None:
        """Writes the checkpoint of a run."""
        state = TrainingState(
            step=self.step,
            network_weights=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            averages=self.averages,
            configuration=configuration,
            collection={"name": collection.name, "hash": collection.hash, "split": collection.split_hash},
            spacing=tuple(collection.spacing),
            seconds=self.seconds,
        )
        save_checkpoint(state, folder / CHECKPOINT)

    def require_finite_weights(self, folder: Path) -> None:
        """Raises DivergedError when a weight is not finite: such a checkpoint must not replace the last one."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise DivergedError(f"step {self.step}: weights are not finite. {REMEDY.format(folder=folder)}")


class StepRecords:
    """Losses of training steps on their way from the device to the log and the progress bar.

    Reading a value makes a GPU finish all work that was queued, so on a GPU many steps are read at once.
    """

    def __init__(self, log: RunLog, bar: tqdm[Any], configuration: Configuration, folder: Path, device: torch.device):
        self._log, self._bar, self._configuration, self._folder = log, bar, configuration, folder
        self._unread = UnreadScalars(1 if device.type == "cpu" else READ_EVERY)

    def add(self, step: int, values: Mapping[str, torch.Tensor]) -> None:
        """Adds the scalars of one step; `step` is the number of steps taken with it."""
        self._unread.add(step, values)
        if self._unread.due:
            self.read()

    def read(self) -> None:
        """Logs all steps that are not logged yet; raises DivergedError when a loss or a gradient is not finite."""
        for step, values in self._unread.read():
            if not (math.isfinite(values["total"]) and math.isfinite(values["gradient_norm"])):
                raise DivergedError(
                    f"step {step}: the loss is {values['total']}, the norm of its gradient "
                    f"{values['gradient_norm']} ({_format_values(values)}). {REMEDY.format(folder=self._folder)}"
                )
            rate = learning_rate(step - 1, self._configuration)
            self._log.record(step, "train", {**values, "learning_rate": rate})
            self._bar.set_postfix_str(_format_values({name: values[name] for name in LOSS_WEIGHTS if name in values}))


def train(
    folder: Path,
    collection: PreprocessedCollection,
    configuration: Configuration,
    device: torch.device,
    state: TrainingState | None = None,
    initial: Encoder | None = None,
    processes: Processes = SINGLE_PROCESS,
    organ_probe: Callable[[PretrainingModel], dict[str, float]] | None = None,
) -> PretrainingModel:
    """Trains to the configuration's last step, from the beginning or from a checkpoint.

    Args:
        folder: folder of the run, for checkpoints, log, records, `progress.png` and `panels/`.
        collection: the preprocessed volumes.
        configuration: settings of the run.
        device: where to train; with bf16 autocast on CUDA.
        state: state in the checkpoint to resume from.
        initial: an encoder to start from, where there is no state.
        processes: those that train together; the first writes all files.
        organ_probe: returns measures of the model, which join those of each validation; only in the first process.

    Returns:
        The trained model.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, when the checkpoint is written.
        DivergedError: when a loss, a gradient or a weight is not finite.
        InputError: when a checkpoint cannot be written.
    """
    requested = configuration
    configuration = requested.for_spacing(collection.spacing)
    training = Training.start(configuration, device, state, initial)
    model, steps = training.model, configuration.steps
    log = RunLog(folder, training.step, configuration.tensorboard) if processes.first else SilentLog()
    if initial is not None and state is None:
        log.info(f"Starting from {initial.path}. {initialize(model, initial)}")
    _log_start(log, training, collection, requested, device, processes)
    wrapped_model = processes.wrap(model, device)
    samples = processes.samples(configuration.batch_size)
    with (
        stop_signals() as received,
        batches_of(_loader(collection, configuration, samples, training.step, device)) as next_batch,
        tqdm(total=steps, initial=training.step, unit="step", smoothing=0.1, disable=not processes.first) as bar,
    ):
        records = StepRecords(log, bar, configuration, folder, device)
        if steps == 0 and processes.first:
            training.save(folder, requested, collection)
        while training.step < steps:
            started = time.perf_counter()
            batch = to_device(next_batch(), device)
            with explain_out_of_memory(configuration, device, len(samples)):
                scalars = training.take_step(batch, configuration, wrapped_model, processes)
            training.seconds += time.perf_counter() - started
            records.add(training.step, scalars)
            bar.update()

            last = training.step == steps
            if training.step % configuration.validate_every == 0 or last:
                records.read()
                _validate(training, collection, configuration, device, folder, log, processes, organ_probe)
            stopping = processes.any(bool(received))
            if stopping or last or training.step % configuration.checkpoint_every == 0:
                records.read()
                training.require_finite_weights(folder)
                if processes.first:
                    training.save(folder, requested, collection)
            if stopping and not last:
                if processes.first:
                    draw_progress(folder)
                reason = received[0] if received else "another process was stopped"
                raise Interrupted(f"{reason} at step {training.step}; saved {folder / CHECKPOINT}")
    log.info(f"Done: {steps} steps in {format_duration(training.seconds)}")
    log.close()
    return model


@contextmanager
def batches_of(loader: DataLoader[Any]) -> Iterator[Callable[[], Any]]:
    """Yields a function that returns the next batch; when the block ends, the loading processes end too.

    They ignore SIGTERM, which Python sends to remaining processes when it exits: it would wait for them forever.
    """
    # In a list, because the traceback of an error keeps the local variables of all its frames alive.
    iterators = [iter(loader)]
    try:
        yield lambda: next(iterators[0])
    finally:
        iterators.clear()


def _loader(
    collection: PreprocessedCollection, configuration: Configuration, samples: range, step: int, device: torch.device
) -> DataLoader[Any]:
    """Loads the training batches from `step` on."""
    crops = CropDataset(
        collection, "train", configuration.crop_size, configuration.batch_size,
        seed=configuration.seed, foreground_share=configuration.foreground_share, steps=configuration.steps,
        samples=samples, domains=configuration.modalities,
    )  # fmt: skip
    return DataLoader(
        crops,
        batch_size=None,
        sampler=range(step, configuration.steps),
        num_workers=configuration.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_stop_signals,
    )


def _log_start(
    log: RunLog,
    training: Training,
    collection: PreprocessedCollection,
    requested: Configuration,
    device: torch.device,
    processes: Processes,
) -> None:
    others = f" and {processes.world_size - 1} more" if processes.world_size > 1 else ""
    log.info(
        f"{'Resuming' if training.step else 'Starting'} at step {training.step} of {requested.steps} on {device}"
        f"{others}, collection {collection.name}, "
        f"{sum(p.numel() for p in training.model.parameters()) / 1e6:.1f} M parameters"
    )
    notes = collection.reading_notes(requested.crop_size)
    for split in SPLITS:
        notes += repetition_notes(collection, split, requested.batch_size, requested.modalities)
    for note in notes:
        log.info(note)
    if requested.quarter_turns and not requested.for_spacing(collection.spacing).quarter_turns:
        log.info(
            f"The spacing is {format_spacing(collection.spacing)} (z, y, x), not isotropic in the axial plane: "
            "no quarter turns and no rotation task. --spacing with equal y and x enables them"
        )
    elif requested.loss_weight("rotation"):
        for note in turning_notes(collection, requested.crop_size, requested.modalities):
            log.info(note)


def _validate(
    training: Training,
    collection: PreprocessedCollection,
    configuration: Configuration,
    device: torch.device,
    folder: Path,
    log: RunLog,
    processes: Processes,
    organ_probe: Callable[[PretrainingModel], dict[str, float]] | None,
) -> None:
    """Validates in all processes; the first writes records, warnings and pictures."""
    step = training.step
    panels = folder / PANELS_FOLDER
    means = validate(training.model, collection, configuration, device, step, training.averages, panels, processes)
    if organ_probe is not None:
        means |= organ_probe(training.model)
    log.record(step, "validation", means)
    log.info(f"step {step}: validation {_format_values(means)}")
    for warning in health_warnings(means, step / configuration.steps):
        log.info(f"WARNING: {warning}")
    if processes.first:
        draw_progress(folder)


def _format_values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {float(value):.3f}" for name, value in values.items())
