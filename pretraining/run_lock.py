"""The lock on the folder of a run, held by one process of the run from its first check to its end."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from nnunetv2_swinfuse.errors import InputError
from pretraining.preprocessed.reader_locks import kernel_lock

# The processes that load crops end some seconds after a killed run, and may hold its lock until then.
END_SECONDS = 10
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Holds the folder of a run, so that no other command trains in it.

    The lock is the hidden file `.FOLDER.lock` beside the folder, so that `swinfuse__*` names folders of runs only.

    Raises:
        InputError: when another process holds the folder, or the lock file cannot be written.
    """
    path = folder.with_name(f".{folder.name}.lock")
    lock = kernel_lock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=END_SECONDS)
    except Timeout:
        raise InputError(
            f"{folder}: another swinfuse_pretrain preprocesses for this run or trains it now (it holds {path}). "
            "Nothing was changed. Wait for it or stop it; a run beside it needs another preset or --recipe, or "
            "another nnUNet_results"
        ) from None
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(f"{path}: cannot be written ({error}); choose another nnUNet_results") from error
    try:
        yield
    finally:
        lock.release()
