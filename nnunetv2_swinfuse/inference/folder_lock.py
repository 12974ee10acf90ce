"""A lock on an output folder: for one process, or for those that have divided the cases between them."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

# Starting processes wait for each other; each holds the folder's lock for milliseconds.
START_SECONDS = 30


class FolderInUseError(Exception):
    """Another process writes into the folder; the message names it."""


def lock_folder(folder: Path, part: int = 0, parts: int = 1) -> FileLock:
    """Takes a folder for this process; the lock ends with `release`, or with the process.

    Where a file system has no locks, filelock marks the folder with a file, which stays after a kill.

    Two processes may hold the folder if they are different parts of the same number of parts: other pairs could have
    a case in common. `lock` is held only while a process starts, `lock_part0of1` and so on while it runs.
    `process_part0of1` names the process, since the content of a locked file cannot be read on Windows.

    Args:
        folder: of the lock files; exists.
        part: which part of the cases is this process's, from 0 on.
        parts: how many there are; 1 for all cases.

    Raises:
        FolderInUseError: when another process holds the folder.
        OSError: when the folder cannot be written.
        NotImplementedError: by some versions of filelock, when the file system has no locks.
    """
    own = folder / f"lock_part{part}of{parts}"
    try:
        with FileLock(folder / "lock").acquire(timeout=START_SECONDS):
            for other in sorted(folder.glob("lock_part*of*")):
                if not other.name.endswith(f"of{parts}"):
                    _acquire(other).release()
            lock = _acquire(own)
            _process_file(own).write_text(str(os.getpid()))
    except Timeout as error:
        raise FolderInUseError("another process has been starting for too long") from error
    return lock


def _acquire(path: Path) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            process = _process_file(path).read_text()
        except OSError:
            process = "unknown"
        raise FolderInUseError(f"process {process}") from None
    return lock


def _process_file(lock: Path) -> Path:
    return lock.with_name(lock.name.replace("lock", "process"))
