"""Where commands run: each worker of a benchmark has its share of the cores, or a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nnunetv2_swinfuse.errors import BenchmarkError


@dataclass(frozen=True)
class Place:
    """What a command may use while it runs: threads, cores (Linux), a GPU. Whatever is not set is not limited."""

    threads: int = 0
    cores: tuple[int, ...] = ()
    gpu: str = ""

    def variables(self) -> dict[str, str]:
        """The environment variable that shows a command its GPU only; none when there is nothing to choose."""
        return {"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {}


def whole_machine(device: str) -> Place:
    """The place of a command that runs alone."""
    return Place(limited(len(available_cores()))) if device == "cpu" else Place()


def share_machine(device: str, workers: int) -> list[Place]:
    """A place for each worker: a GPU each in turn, or a share of the cores.

    Raises:
        BenchmarkError: when `device` is cuda and there is no GPU.
    """
    if device == "cuda":
        gpus = visible_gpus()
        return [Place(gpu=gpus[worker % len(gpus)] if len(gpus) > 1 else "") for worker in range(workers)]
    if workers == 1:
        return [whole_machine(device)]
    cores = available_cores()
    share = max(1, len(cores) // workers)
    numbers = [[cores[(worker * share + i) % len(cores)] for i in range(share)] for worker in range(workers)]
    return [Place(limited(share), tuple(own)) for own in numbers]


def available_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def limited(threads: int) -> int:
    """This number of threads, or OMP_NUM_THREADS if that is smaller."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(asked)) if asked.isdigit() and int(asked) else threads


def visible_gpus() -> list[str]:
    """Identifiers for CUDA_VISIBLE_DEVICES.

    Raises:
        BenchmarkError: when there is none.
    """
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if named:
        return named
    import torch

    if not torch.cuda.is_available():
        raise BenchmarkError('device is cuda, but PyTorch sees no GPU here; set "device": "cpu" or -device cpu')
    return [str(index) for index in range(torch.cuda.device_count())]
