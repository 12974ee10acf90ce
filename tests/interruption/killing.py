"""What the scripts of this folder share: commands that are killed at a moment of the script's choice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Seconds for any one command, and for a moment to come.
PATIENCE = 600

Process = subprocess.Popen[str]


class LostError(Exception):
    """Something was lost by a kill."""


@dataclass(frozen=True)
class Command:
    """A command of a user.

    Attributes:
        arguments: those of Python, from `-m` or `-c` on.
        output: file that its output is appended to.
        variables: of its environment, besides those of this process.
        codes: exit codes of success.
    """

    arguments: tuple[str, ...]
    output: Path
    variables: Mapping[str, str]
    codes: tuple[int, ...] = (0,)

    def start(self, *more: object) -> Process:
        """Starts it with further arguments, on one thread."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(self.variables)
        with self.output.open("a") as output:
            return subprocess.Popen(
                [sys.executable, *self.arguments, *map(str, more)],
                env=environment, stdout=output, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def finish(self, *more: object) -> float:
        """Runs it to its end; returns its seconds."""
        begin = time.monotonic()
        code = self.start(*more).wait(PATIENCE)
        if code not in self.codes:
            raise LostError(f"the command ended with {code}:\n{self.output.read_text()[-4000:]}")
        return time.monotonic() - begin


def kill(process: Process) -> bool:
    """SIGKILL; False when the command had ended before."""
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    return running


def until(arrived: Callable[[], bool], process: Process) -> None:
    """Waits for a moment while a command runs."""
    limit = time.monotonic() + PATIENCE
    while not arrived():
        if process.poll() is not None:
            raise LostError(f"the command ended with {process.returncode} before it could be killed")
        if time.monotonic() > limit:
            raise LostError(f"nothing to kill came in {PATIENCE} s")
        time.sleep(0.001)
