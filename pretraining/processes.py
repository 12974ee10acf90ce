"""Distributed training: how processes divide a batch and exchange tensors so that gradients are exact.

Every process computes the losses of the *whole* batch from tensors that are gathered with gradients. The value is
therefore the same in all processes, contrastive negatives and densities include all samples, and means whose
denominators depend on the samples (cut-out voxels) are means over the batch, not means of means.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_swinfuse.errors import InputError
from pretraining.views import previous_crop

# For a rank that hangs (torchrun notices at once when one ends); longer than any validation.
TIMEOUT = timedelta(hours=1)
# For one attempt to connect to a store, whose address may be out of date.
CONNECTION_TIMEOUT = timedelta(seconds=5)
STORE_ADDRESS = "swinfuse_store"
# Variables in which torchrun and SLURM count restarts.
RESTART_VARIABLES = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; a single process by default.

    Attributes:
        rank: index of this process.
        world_size: number of processes.
        local_rank: index of this process on its machine, which is also the index of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and the log."""
        return self.rank == 0

    def samples(self, batch_size: int) -> range:
        """Indices of this process's samples in the batch.

        Raises:
            InputError: when the batch cannot be divided evenly.
        """
        if batch_size % self.world_size:
            raise InputError(
                f"batch_size is {batch_size} and counts the pairs of all {self.world_size} processes together; "
                f"expected a multiple, such as --batch_size {(batch_size // self.world_size + 1) * self.world_size}"
            )
        share = batch_size // self.world_size
        return range(self.rank * share, (self.rank + 1) * share)

    def gather(self, values: Tensor) -> Tensor:
        """Concatenates the values (n, ...) of all processes to (world_size * n, ...), with gradients."""
        return values if self.world_size == 1 else _Gather.apply(values, self)

    def gather_views(self, values: Tensor) -> Tensor:
        """Gathers values (2n, ...), first views and then second views, in the same order: (world_size * 2n, ...)."""
        if self.world_size == 1:
            return values
        by_process = self.gather(values).unflatten(0, (self.world_size, 2, -1))
        return by_process.transpose(0, 1).flatten(0, 2)

    def other_crops(self, crops: Tensor) -> Tensor | None:
        """For each crop (B, ...) the previous one in the batch of all processes; None if there is only one."""
        if self.world_size == 1:
            return previous_crop(crops)
        last_crops = self.gather(crops[-1:].detach())
        return torch.cat([last_crops[self.rank - 1][None], crops[:-1]])

    def any(self, condition: bool) -> bool:
        """Whether a condition holds in any process."""
        if self.world_size == 1:
            return condition
        flag = torch.tensor(int(condition))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def wait(self) -> None:
        """Waits until all processes have called this."""
        self.any(False)

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """Wraps the model so that its gradients are averaged over the processes."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def require_equal(self, facts: Mapping[str, Any]) -> None:
        """Raises InputError in all processes if versions, settings or volumes of one differ from those of rank 0."""
        if self.world_size == 1:
            return
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, (socket.gethostname(), dict(facts)))
        first_host, expected = gathered[0]
        differences = [
            f"{name} is {values.get(name)} on rank {rank} ({host}) and {expected[name]} on rank 0 ({first_host})"
            for rank, (host, values) in enumerate(gathered)
            for name in expected
            if values.get(name) != expected[name]
        ]
        if differences:
            raise InputError(
                f"the {self.world_size} processes differ: {'; '.join(differences)}. Give all of them the same "
                "environment, the same command and the same folders"
            )


SINGLE_PROCESS = Processes()


@contextmanager
def process_group(device: str) -> Iterator[Processes]:
    """Joins the processes that torchrun has started for the duration of the block; a single process without torchrun.

    Args:
        device: the setting `device`.

    Raises:
        InputError: when this machine has fewer GPUs than processes.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    processes = Processes(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    cuda = torch.cuda.is_available() and device != "cpu"
    if cuda:
        gpus = torch.cuda.device_count()
        if processes.local_rank >= gpus:
            raise InputError(
                f"process {processes.local_rank + 1} on {socket.gethostname()} has no GPU: the machine has {gpus}. "
                f"Start at most {gpus} processes per machine (--nproc-per-node {gpus})"
            )
        torch.cuda.set_device(processes.local_rank)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = _new_store()
        dist.init_process_group(
            backend, store=store, rank=processes.rank, world_size=processes.world_size, timeout=TIMEOUT
        )
    else:
        dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield processes
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the first of those that torchrun has started, or the only one."""
    return "WORLD_SIZE" not in os.environ or int(os.environ.get("RANK", 0)) == 0


def was_restarted() -> bool:
    """Whether torchrun or SLURM has restarted this command after a failure or a preemption."""
    return any(int(os.environ.get(name, 0)) > 0 for name in RESTART_VARIABLES)


def _new_store() -> dist.Store:
    """A store for this attempt only, hosted by the first process.

    torchrun's own store outlives the processes: those of the next attempt would read the addresses of the previous
    attempt from it (torch 2.14, issue 167288). Only the address of the new store is exchanged through it. Connecting to
    an outdated address fails, since all processes of an attempt have ended before the next one starts.
    """
    shared, rank, world_size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    if rank == 0:
        host = os.environ["MASTER_ADDR"]
        store = dist.TCPStore(host, 0, world_size, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        shared.set(STORE_ADDRESS, f"{host} {store.port}")
        return store
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while True:
        host, port = shared.get(STORE_ADDRESS).decode().split()
        try:
            store = dist.TCPStore(host, int(port), world_size, is_master=False, timeout=CONNECTION_TIMEOUT)
        except dist.DistNetworkError:
            if time.monotonic() > deadline:
                raise
            continue
        store.set_timeout(TIMEOUT)
        return store


class _Gather(torch.autograd.Function):
    """Differentiable all-gather: its backward pass sums the gradients of all processes.

    All processes compute the same loss from the gathered values, and DistributedDataParallel averages gradients over
    the processes, so the sum over `world_size` equal losses becomes the gradient of one. torch's own differentiable
    `all_gather` does the same, but looks the backend up by name and does not know mixed ones.
    """

    @staticmethod
    def forward(context: Any, values: Tensor, processes: Processes) -> Tensor:
        context.processes = processes
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(processes.world_size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(context.processes.world_size)[context.processes.rank], None
