"""Any of nnU-Net's trainers with a seed and a length from the environment, and a record of what it cost.

The benchmark trains `NAMESeeded` for the trainer `NAME`: the same class, whose `__init__` seeds the generators and sets
the number of epochs and iterations, and which writes `cost.json` beside its checkpoints. The seed fixes the initial
weights; it fixes the whole run where augmentation is done in the training process (`nnUNet_n_proc_DA=0`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import nn

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write, move_into_place
from nnunetv2_swinfuse.errors import BenchmarkError

SUFFIX = "Seeded"
COST = "cost.json"
# Not SWINFUSE_*: those are settings of fine-tuning.
VARIABLES = {
    "seed": "BENCHMARK_SEED",
    "epochs": "BENCHMARK_EPOCHS",
    "iterations": "BENCHMARK_ITERATIONS",
    "validation_iterations": "BENCHMARK_VALIDATION_ITERATIONS",
    "mirroring": "BENCHMARK_MIRRORING",
    "mirrored_training": "BENCHMARK_MIRRORED_TRAINING",
    "threads": "BENCHMARK_THREADS",
}


class SeededTraining(nnUNetTrainer):
    """The part that `Seeded` adds to a trainer; it is the first of the bases.

    Raises:
        BenchmarkError: when a variable of the benchmark is not set or no number.
    """

    inference_allowed_mirroring_axes: tuple[int, ...] | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        values = self.values = _variables()
        seed_generators(values["seed"])
        if values["threads"]:
            # nnUNetv2_train takes all cores, also where trainings share the machine.
            torch.set_num_threads(values["threads"])
        self.length = values["epochs"]
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = values["epochs"]
        self.num_iterations_per_epoch = values["iterations"]
        self.num_val_iterations_per_epoch = values["validation_iterations"]
        self.print_to_log_file(f"benchmark: {json.dumps(values)}")

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802 - nnU-Net's own name
        self,
    ) -> tuple[dict[str, tuple[float, float]], bool, Any, tuple[int, ...] | None]:
        """As nnU-Net's, without mirroring if the experiment switches it off (as `nnUNetTrainerNoMirroring`)."""
        rotation, dummy_2d, initial_patch, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.values["mirrored_training"]:
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch, axes

    def on_train_end(self) -> None:
        super().on_train_end()
        cost = training_cost(self)
        # Where only the validation was left, nnU-Net ends the training once more, in a process that never trained.
        cost["peak_memory_bytes"] = max(cost["peak_memory_bytes"], _known(self).get("peak_memory_bytes", 0))
        _update(self, cost)

    def save_checkpoint(self, filename: str) -> None:
        """Writes under another name first: nnU-Net, killed while it writes, leaves half a file, and --c fails."""
        temporary = Path(f"{filename}.tmp")
        super().save_checkpoint(str(temporary))
        if temporary.is_file():
            move_into_place(temporary, Path(filename))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validates as nnU-Net does, without mirroring if the experiment switches it off."""
        axes = self.inference_allowed_mirroring_axes
        if not self.values["mirroring"]:
            self.inference_allowed_mirroring_axes = None
        with timed_passes(self.network, self.device) as seconds:
            super().perform_actual_validation(save_probabilities)
        self.inference_allowed_mirroring_axes = axes
        cases = len(self.do_split()[1])
        _update(self, {"inference_seconds_per_case": sum(seconds) / cases, "predicted_cases": cases})


def __getattr__(name: str) -> type[nnUNetTrainer]:
    """Builds the class `NAMESeeded` from the trainer `NAME`, which nnU-Net finds."""
    if name.startswith("__") or not name.endswith(SUFFIX) or name == SUFFIX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = recursive_find_trainer_class_by_name(name.removesuffix(SUFFIX))
    made = type(name, (SeededTraining, base), {"__module__": __name__, "__doc__": f"{base.__name__}, seeded."})
    globals()[name] = made
    return made


def seed_generators(seed: int) -> None:
    """Seeds the generators that nnU-Net and its augmentation use in this process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def timed_passes(network: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Seconds of each forward pass. Reading and export are left out: they are the same for all networks."""
    seconds: list[float] = []
    begun = [0.0]

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    before = network.register_forward_pre_hook(lambda *_: begun.__setitem__(0, now()))
    after = network.register_forward_hook(lambda *_: seconds.append(now() - begun[0]))
    try:
        yield seconds
    finally:
        before.remove()
        after.remove()


def training_cost(trainer: nnUNetTrainer) -> dict[str, Any]:
    """Parameters, operations of a patch, time and memory of the training that just ended in this process."""
    from torch.utils.flop_counter import FlopCounterMode

    log = trainer.logger.get_checkpoint()
    starts, ends = log["epoch_start_timestamps"], log["epoch_end_timestamps"]
    iterations = trainer.num_iterations_per_epoch + trainer.num_val_iterations_per_epoch
    network = getattr(trainer.network, "module", trainer.network)
    network = getattr(network, "_orig_mod", network)
    patch = torch.zeros(1, trainer.num_input_channels, *trainer.configuration_manager.patch_size, device=trainer.device)
    training = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(patch)
    network.train(training)
    if trainer.device.type == "cuda":
        memory, kind = torch.cuda.max_memory_allocated(trainer.device), "allocated on the GPU"
    else:
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        memory, kind = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident set of the process"
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops_per_patch": counter.get_total_flops(),
        "patch_size": [int(size) for size in trainer.configuration_manager.patch_size],
        "batch_size": int(trainer.batch_size),
        # Epochs last their training and validation iterations; the latter are counted as such.
        "seconds_per_iteration": statistics.median(
            (end - start) / iterations for start, end in zip(starts, ends, strict=True)
        ),
        "peak_memory_bytes": int(memory),
        "peak_memory_kind": kind,
        "threads": torch.get_num_threads(),
    }


def _known(trainer: nnUNetTrainer) -> dict[str, Any]:
    path = Path(trainer.output_folder) / COST
    return json.loads(path.read_text()) if path.is_file() else {}


def _update(trainer: nnUNetTrainer, entries: dict[str, Any]) -> None:
    with atomic_write(Path(trainer.output_folder) / COST) as temporary:
        temporary.write_text(json.dumps({**_known(trainer), **entries}, indent=1))


def _variables() -> dict[str, int]:
    try:
        return {name: int(os.environ[variable]) for name, variable in VARIABLES.items()}
    except (KeyError, ValueError) as error:
        raise BenchmarkError(
            f"{error}: {', '.join(VARIABLES.values())} must be whole numbers; run.sh of a cell sets them"
        ) from error
