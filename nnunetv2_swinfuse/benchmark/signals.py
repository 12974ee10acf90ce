"""SIGTERM ends the trainings as Ctrl-C does, and forked processes as it does everywhere."""

from __future__ import annotations

import os
import signal
import threading
from typing import NoReturn

_registered = False
_released = False


def interrupt(number: int, frame: object) -> NoReturn:
    """The handler: what Python does at Ctrl-C."""
    raise KeyboardInterrupt


def stop_on_termination() -> None:
    """Makes `kill`, or a cluster's time limit, interrupt this process as Ctrl-C does; called in the main thread.

    Forked processes start without this handler. nnU-Net ends the workers of its pools with SIGTERM, and Python runs a
    handler only between two instructions: a worker that is about to wait for a semaphore when the signal comes would
    wait forever, and the pool for the worker.
    """
    global _registered
    signal.signal(signal.SIGTERM, interrupt)
    if not _registered:
        # Before the fork, not after it in the child: a signal in between would be lost.
        os.register_at_fork(before=_release, after_in_parent=_take_back)
        _registered = True


def _release() -> None:
    global _released
    # Other threads must not set handlers; all they fork are commands, which start without any.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _released = True


def _take_back() -> None:
    global _released
    if _released and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
        _released = False
