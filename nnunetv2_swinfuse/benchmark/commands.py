"""nnU-Net's and this project's console commands, with the environment of an experiment, logged to a file."""

from __future__ import annotations

import os
import shlex
import shutil
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

# Of this project, for a checkout that is not installed.
MODULES = {
    "swinfuse_pretrain": "pretraining.cli",
    "swinfuse_plan_and_preprocess": "nnunetv2_swinfuse.planning.plan_and_preprocess",
    "swinfuse_benchmark": "nnunetv2_swinfuse.benchmark.cli",
}
TAIL = 15


class CommandError(BenchmarkError):
    """A command that ended with an error; the message has it, its status and the end of its log."""


class Processes:
    """The commands that run now: all are stopped when the benchmark is."""

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
        """Runs a command to its end; its output goes to the end of `log`.

        Args:
            command: name of a console script and its arguments.
            environment: of the command.
            log: a text file.
            keep_open: a locked file that the command inherits, and with it the lock.
            cores: that it may use (Linux); all when empty.

        Raises:
            CommandError: when it ends with another status than 0.
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
        """Ends all commands and their children; what they had written is whole or is made again."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                try:
                    os.killpg(process.pid, 15)
                except ProcessLookupError:
                    continue


def executable(command: Sequence[str]) -> list[str]:
    """The program of this Python environment that a console command is."""
    name = command[0]
    program = shutil.which(name, path=sysconfig.get_path("scripts"))
    if program is not None:
        return [program, *command[1:]]
    if name in MODULES:
        return [sys.executable, "-c", f"from {MODULES[name]} import main; main()", *command[1:]]
    raise BenchmarkError(f"{name} is not installed in {sys.prefix}; see docs/installation.md")


def pin(cores: Sequence[int]) -> Callable[[], None] | None:
    """What makes a new process stay on these cores; None where that is not asked for or not possible."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, cores)


def base_environment(device: str, threads: int) -> dict[str, str]:
    """Of all commands: trainers are found, settings of the user's own are not taken.

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
        # In the training process: the seed then fixes the whole run.
        environment["nnUNet_n_proc_DA"] = "0"
    return environment


def tail(log: Path) -> list[str]:
    """The last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-TAIL:]
