"""Locks of the runs that read preprocessed volumes, so that these are not deleted under them.

They are locks of the kernel on empty files beside the folder: a lock ends with its process, also when that is killed,
and the file that remains locks nothing. On a file system without locks there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from nnunetv2_swinfuse.errors import InputError


@contextmanager
def hold_volumes(folder: Path) -> Iterator[None]:
    """Holds preprocessed volumes while a run reads them, so that no other command deletes them; any number may.

    A run takes the first free of the files `FOLDER.reader0.lock`, `FOLDER.reader1.lock` and so on beside the folder.
    Where the folder is read-only, none is taken.
    """
    with ExitStack() as stack:
        for number in count():
            path = folder.with_name(f"{folder.name}.reader{number}.lock")
            try:
                stack.enter_context(kernel_lock(path).acquire(timeout=0))
                break
            except Timeout:
                continue
            except (OSError, NotImplementedError):
                # The file of another user, beside which there may be a place for one of this user's.
                if not path.exists():
                    break
        yield


@contextmanager
def without_readers(folder: Path) -> Iterator[None]:
    """Makes sure that no run reads preprocessed volumes, for the time of their deletion.

    Raises:
        InputError: when a run reads them.
    """
    with ExitStack() as stack:
        for path in sorted(folder.parent.glob(f"{folder.name}.reader*.lock")):
            try:
                stack.enter_context(kernel_lock(path).acquire(timeout=0))
            except Timeout:
                raise InputError(
                    f"{folder}: a run is training on these volumes now (it holds {path}), so --overwrite cannot delete "
                    "them. Nothing was changed. Wait for it or stop it; to start only a training again: --train_only "
                    "--overwrite"
                ) from None
            except (OSError, NotImplementedError):
                continue
        yield


def kernel_lock(path: Path) -> FileLock:
    """A lock that ends with its process; taking it raises OSError or NotImplementedError where there are no locks."""
    # Where a file system has no locks, filelock takes the file itself for one, which would outlive a killed process.
    return FileLock(path, fallback_to_soft=False) if hasattr(FileLock, "fallback_to_soft") else FileLock(path)
