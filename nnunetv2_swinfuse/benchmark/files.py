"""Files that are complete or absent, and locks that end with their process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write

POLL_SECONDS = 0.2


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: nobody reads half of it."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def locked(path: Path, busy: str = "", stopped: Callable[[], bool] = lambda: False) -> Iterator[IO[str]]:
    """Holds an exclusive lock on a file; waits for the process that has it, and says `busy` before.

    Children that inherit the file keep the lock: a training that outlives the killed benchmark that started it is
    seen by the next.

    Args:
        path: of the file.
        busy: what to say before waiting; nothing when empty.
        stopped: whether to give up waiting. A thread is not interrupted by signals.

    Raises:
        KeyboardInterrupt: when it was stopped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        if not _lock(file):
            if busy:
                print(f"{path}: held by another process. {busy}", file=sys.stderr, flush=True)
            while not _lock(file):
                if stopped():
                    raise KeyboardInterrupt
                time.sleep(POLL_SECONDS)
        # Closing ends this process's hold. LOCK_UN would end that of the children as well.
        yield file


def _lock(file: IO[str]) -> bool:
    """Locks a file unless another process has it; returns whether it did."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
