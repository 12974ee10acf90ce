"""`-num_gpus N`: the processes of one machine, started by torch's own launcher, and started again when one fails."""

from __future__ import annotations

import logging
import os
import sys
import uuid

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pretraining.errors import InputError
from pretraining.loop import Interrupted
from pretraining.run import Run, carry_out, find_device

RESTARTS = 3
# Of a process: bad input, and interruption; nothing that another attempt would change.
BAD_INPUT, INTERRUPTED = 2, 130


def launch(run: Run, count: int) -> None:
    """Trains in `count` processes and returns when the encoder is published.

    A process that fails, killed by the system for instance, ends the others; all begin again at the last checkpoint, up
    to three times.

    Raises:
        InputError: when there are fewer GPUs; or when it fails too often.
        Interrupted: after Ctrl-C or SIGTERM, when the checkpoint is written.
        SystemExit: with 2 when a process has explained what is wrong.
    """
    device = find_device(run.configuration)
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise InputError(f"-num_gpus is {count}, but PyTorch sees {torch.cuda.device_count()} here")
    # The launcher's own account of a failure is a page long.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for attempt in range(RESTARTS + 1):
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2,
        )  # fmt: skip
        try:
            elastic_launch(config, process)(run, attempt > 0)
            return
        except SignalException as error:
            if not run.checkpoint.exists():
                # Before the first step there is nothing to go on with.
                raise KeyboardInterrupt from None
            raise Interrupted(f"{error.sigval.name}; saved {run.checkpoint}") from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode == BAD_INPUT:
                raise SystemExit(BAD_INPUT) from None
            if failure.exitcode == INTERRUPTED:
                raise Interrupted(f"a process was stopped; saved {run.checkpoint}") from None
            ended = f"process {rank} of {count} ended with {failure.exitcode} ({failure.signal_name()})"
        if attempt < RESTARTS:
            print(f"WARNING: {ended}; going on from the last checkpoint, if there is one", file=sys.stderr)
    raise InputError(f"{ended}, after {RESTARTS} new beginnings; go on with --c when the cause is found")


def process(run: Run, again: bool) -> None:
    """One of the processes; exits with 2 on bad input, 130 when interrupted."""
    if hasattr(os, "setpgrp"):
        # Ctrl-C reaches every process of a terminal; the launcher alone answers it and tells each once.
        os.setpgrp()
    if find_device(run.configuration).type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    try:
        carry_out(run, again)
    except InputError as error:
        print(f"swinfuse_pretrain, rank {os.environ['RANK']}: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except Interrupted:
        raise SystemExit(INTERRUPTED) from None
