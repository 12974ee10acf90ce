"""Processes that train together: who does what, and exchange that leaves the gradients exact.

Every process computes the losses of the *whole* batch: what they are made of is gathered, with gradients. So the value
is the same everywhere, negatives and densities see all samples, and averages whose denominators depend on the samples
(voxels that were cut out) are those of the batch, not averages of averages.
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

from pretraining.errors import InputError
from pretraining.views import the_one_before

# A rank that has ended is seen by torchrun at once; this is for one that hangs, and longer than any validation.
TIMEOUT = timedelta(hours=1)
# To one store; an old address is given up after it.
CONNECTING = timedelta(seconds=5)
STORE_ADDRESS = "swinfuse_store"
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; by itself by default.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        local_rank: number of this process on its machine, and of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def samples(self, batch_size: int) -> range:
        """The samples of the batch that are this process's.

        Raises:
            InputError: when the batch cannot be divided evenly.
        """
        if batch_size % self.world_size:
            raise InputError(
                f"batch_size is {batch_size} and counts over all processes, of which there are {self.world_size}; "
                f"expected a multiple, such as --batch_size {(batch_size // self.world_size + 1) * self.world_size}"
            )
        share = batch_size // self.world_size
        return range(self.rank * share, (self.rank + 1) * share)

    def gather(self, values: Tensor) -> Tensor:
        """Values (n, ...) of all processes one after the other (world_size * n, ...), with gradients."""
        return values if self.world_size == 1 else _Gather.apply(values, self)

    def gather_views(self, values: Tensor) -> Tensor:
        """The same for both views of each sample, joined along the batch axis: in the order one process has them."""
        if self.world_size == 1:
            return values
        apart = self.gather(values).unflatten(0, (self.world_size, 2, -1))
        return apart.transpose(0, 1).flatten(0, 2)

    def other_crops(self, crops: Tensor) -> Tensor | None:
        """For each crop (B, ...) the one before it in the batch of all processes."""
        if self.world_size == 1:
            return the_one_before(crops)
        lasts = self.gather(crops[-1:].detach())
        return torch.cat([lasts[self.rank - 1][None], crops[:-1]])

    def any(self, here: bool) -> bool:
        """Whether it holds on any process."""
        if self.world_size == 1:
            return here
        flag = torch.tensor(int(here))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The model with gradients averaged over the processes."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def require_equal(self, facts: Mapping[str, Any]) -> None:
        """Raises InputError, on all processes, when one has other versions, settings or volumes than the first."""
        if self.world_size == 1:
            return
        everywhere: list[Any] = [None] * self.world_size
        dist.all_gather_object(everywhere, (socket.gethostname(), dict(facts)))
        _, expected = everywhere[0]
        differing = [
            f"{name} is {found[name]} on rank {rank} ({host}) and {expected[name]} on rank 0 ({everywhere[0][0]})"
            for rank, (host, found) in enumerate(everywhere)
            for name in expected
            if found.get(name) != expected[name]
        ]
        if differing:
            raise InputError(
                f"the {self.world_size} processes differ: {'; '.join(differing)}. Give all of them the same "
                "environment, the same command and the same folders"
            )


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Within, this process is one of those that torchrun has started; alone where it has not.

    Args:
        device: the setting `device`.

    Raises:
        InputError: when there are fewer GPUs on this machine than processes.
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
                f"process {processes.local_rank + 1} on {socket.gethostname()} has no GPU of its own: there are "
                f"{gpus}. Start at most {gpus} a machine (--nproc-per-node {gpus})"
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


def started_again() -> bool:
    """Whether torchrun or SLURM has started this command again after a failure or a preemption."""
    return any(int(os.environ.get(name, 0)) > 0 for name in RESTARTS)


def _new_store() -> dist.Store:
    """A store of this attempt alone, hosted by the first process.

    torchrun's own outlives its processes: in it, those of the next attempt find the addresses of the last one's (torch
    2.14; its issue 167288). Only the new store's address goes through it. An old address there leads nowhere, since all
    processes of an attempt have ended before the next begins.
    """
    shared, rank, world_size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    if rank == 0:
        host = os.environ["MASTER_ADDR"]
        store = dist.TCPStore(host, 0, world_size, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        shared.set(STORE_ADDRESS, f"{host} {store.port}")
        return store
    limit = time.monotonic() + TIMEOUT.total_seconds()
    while True:
        host, port = shared.get(STORE_ADDRESS).decode().split()
        try:
            store = dist.TCPStore(host, int(port), world_size, is_master=False, timeout=CONNECTING)
        except dist.DistNetworkError:
            if time.monotonic() > limit:
                raise
            continue
        store.set_timeout(TIMEOUT)
        return store


class _Gather(torch.autograd.Function):
    """All processes compute the same loss from what is gathered; its gradient here is the sum of theirs.

    DistributedDataParallel averages: the sum over `world_size` equal losses becomes the gradient of one. torch's own
    differentiable `all_gather` does the same, but asks for the backend by name and does not know a mixed one.
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
