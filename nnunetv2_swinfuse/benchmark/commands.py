"""nnU-Net's and this project's console commands, with the environment of an experiment, logged to a file."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from nnunetv2_swinfuse.discovery.register import external_trainers_folder
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.nnunet_names import EXTERNAL_TRAINERS

# This project's own commands, for a checkout that is not installed.
MODULES = {
    "swinfuse_pretrain": "pretraining.cli",
    "swinfuse_plan_and_preprocess": "nnunetv2_swinfuse.planning.plan_and_preprocess",
    "swinfuse_benchmark": "nnunetv2_swinfuse.benchmark.cli",
}
TAIL = 15


class CommandError(BenchmarkError):
    """A command that failed; the message has the command, its exit status and the end of its log."""


class Processes:
    """The running commands; all of them stop when the benchmark does."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def call(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        keep_open: IO[str] | None = None,
        cores: Sequence[int] = (),
    ) -> None:
        """Runs a command and appends its output to `log`.

        Args:
            command: name of a console script and its arguments.
            environment: of the command.
            log: a text file.
            keep_open: a locked file that the command inherits, and with it the lock.
            cores: that it may use (Linux); all when empty.

        Raises:
            CommandError: when its exit status is not 0.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            with self._lock:
                if self.stopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    executable(command),
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=() if keep_open is None else (keep_open.fileno(),),
                    preexec_fn=pin(cores),
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                status = process.wait()
            except BaseException:
                # Interrupted in this very thread: nobody else would end the command.
                _terminate(process)
                raise
            finally:
                with self._lock:
                    self._running.discard(process)
        if self.stopped:
            raise KeyboardInterrupt
        if status:
            raise CommandError(
                f"{shlex.join(command)} ended with status {status}. The end of {log}:\n    " + "\n    ".join(tail(log))
            )

    def stop(self) -> None:
        """Ends all commands and their children. Their files are either complete or written again by the next run."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                _terminate(process)


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Asks a command and its children to end; the lock that it holds tells the next run when it has."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def executable(command: Sequence[str]) -> list[str]:
    """The command with the full path of its program in this Python environment."""
    name = command[0]
    program = shutil.which(name, path=sysconfig.get_path("scripts"))
    if program is not None:
        return [program, *command[1:]]
    if name in MODULES:
        return [sys.executable, "-c", f"from {MODULES[name]} import main; main()", *command[1:]]
    raise BenchmarkError(f"{name} is not installed in {sys.prefix}; see docs/installation.md")


def pin(cores: Sequence[int]) -> Callable[[], None] | None:
    """A function that binds a new process to these cores; None when there are none or the system cannot do it."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, cores)


def base_environment(device: str, threads: int) -> dict[str, str]:
    """The environment of all commands: nnU-Net finds the trainers, and the user's own settings are left out.

    Args:
        device: `cpu` or `cuda`.
        threads: of a command; 0 leaves it to PyTorch.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SWINFUSE_", "BENCHMARK_"))
    }
    own = Path(__file__).resolve().parent / "external_trainers"
    folders = [folder for folder in environment.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if folder]
    for folder in (str(own), str(external_trainers_folder())):
        if folder not in folders:
            folders.append(folder)
    environment[EXTERNAL_TRAINERS] = os.pathsep.join(folders)
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
        environment.setdefault("nnUNet_def_n_proc", str(threads))
    if device == "cpu":
        # Augmentation runs in the training process, so that the seed fixes the whole run.
        environment["nnUNet_n_proc_DA"] = "0"
    return environment


def tail(log: Path) -> list[str]:
    """The last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-TAIL:]
