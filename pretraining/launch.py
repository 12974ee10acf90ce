"""`-num_gpus N`: starts the processes of one machine with torch's launcher, and restarts them when one fails."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import uuid
from dataclasses import fields
from multiprocessing.synchronize import Event

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nnunetv2_swinfuse.errors import InputError
from pretraining.interruption import Interrupted
from pretraining.run import Run, find_device, run_pretraining

MAX_RESTARTS = 3
# Exit statuses of a process after which a restart would be pointless.
BAD_INPUT, INTERRUPTED = 2, 130
# From a signal until torch kills the processes: a step, its validation and a checkpoint. torch's own 30 s are too few.
SHUTDOWN_SECONDS = 600
SHUTDOWN_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


def launch(run: Run, count: int) -> None:
    """Trains in `count` processes and returns when the encoder is published.

    When a process fails, for instance because the system kills it, the others are ended and all restart from the last
    checkpoint, up to three times.

    Raises:
        InputError: when the machine has fewer GPUs, or after too many failures.
        Interrupted: after Ctrl-C or SIGTERM; says whether the checkpoint was written then or is older.
        SystemExit: with status 2 when a process has printed what is wrong.
    """
    require_gpus(find_device(run.configuration), count)
    # The launcher's own report of a failure is a page long.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    saved = multiprocessing.get_context("spawn").Event()
    for attempt in range(MAX_RESTARTS + 1):
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2, **_shutdown_timeout(),
        )  # fmt: skip
        try:
            elastic_launch(config, run_process)(run, attempt > 0, saved)
            return
        except SignalException as error:
            if not run.checkpoint.exists():
                # Before the first checkpoint there is nothing to resume.
                raise KeyboardInterrupt from None
            raise Interrupted(f"{error.sigval.name}; {_describe_checkpoint(run, saved)}") from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode == BAD_INPUT:
                raise SystemExit(BAD_INPUT) from None
            if failure.exitcode == INTERRUPTED:
                raise Interrupted(f"a process was stopped; {_describe_checkpoint(run, saved)}") from None
            problem = f"process {rank} of {count} ended with {failure.exitcode} ({failure.signal_name()})"
        if attempt < MAX_RESTARTS:
            print(f"WARNING: {problem}; restarting from the last checkpoint, if there is one", file=sys.stderr)
    raise InputError(f"{problem}, after {MAX_RESTARTS} restarts; resume with --c when the cause is fixed")


def require_gpus(device: torch.device, count: int) -> None:
    """Raises InputError when a machine has fewer GPUs than `count`, to train on CUDA."""
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise InputError(f"-num_gpus is {count}, but PyTorch sees {torch.cuda.device_count()} GPU(s) here")


def _shutdown_timeout() -> dict[str, int]:
    """The argument of LaunchConfig, where torch has it (2.14 does, 2.10 does not) and the user has not set another."""
    known = any(field.name == "shutdown_timeout" for field in fields(LaunchConfig))
    return {"shutdown_timeout": SHUTDOWN_SECONDS} if known and SHUTDOWN_VARIABLE not in os.environ else {}


def _describe_checkpoint(run: Run, saved: Event) -> str:
    if saved.is_set():
        return f"saved {run.checkpoint}"
    return f"the processes ended before they could save; {run.checkpoint} is of an earlier step"


def run_process(run: Run, restarted: bool, saved: Event) -> None:
    """Runs one of the processes; exits with status 2 on bad input, 130 when interrupted.

    Args:
        run: what to train.
        restarted: see :func:`run_pretraining`.
        saved: is set when the run was interrupted and the first process has written the checkpoint.
    """
    if hasattr(os, "setpgrp"):
        # Ctrl-C reaches every process of a terminal; only the launcher handles it, and signals each process once.
        os.setpgrp()
    if find_device(run.configuration).type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    try:
        run_pretraining(run, restarted)
    except InputError as error:
        print(f"swinfuse_pretrain, rank {os.environ['RANK']}: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except Interrupted:
        # The first process writes the checkpoint.
        if os.environ["RANK"] == "0":
            saved.set()
        raise SystemExit(INTERRUPTED) from None
