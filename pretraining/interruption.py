"""Ctrl-C and SIGTERM during training: the step is finished and a checkpoint written before the program ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop; its checkpoint holds all steps so far."""


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collects the names of received stop signals (Ctrl-C, SIGTERM) in a list; a second one ends the program.

    Python accepts signal handlers in the main thread only: elsewhere this raises ValueError.
    """
    received: list[str] = []
    previous: dict[signal.Signals, Any] = {}

    def record(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, record)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """Makes a process that loads crops ignore Ctrl-C and SIGTERM: the training process handles them and ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
