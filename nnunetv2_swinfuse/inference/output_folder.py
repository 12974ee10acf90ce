"""A folder of masks that survives kills and a second process: masks appear complete, with a record of their origin."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from nnunetv2_swinfuse.architecture.atomic_write import move_into_place, write_text
from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.loading import file_hash

HIDDEN = ".swinfuse"


class OutputFolder:
    """Masks, their records (`.swinfuse/CASE.json`) and a lock against other processes.

    Args:
        folder: of the masks; is created.
        ending: of the masks.
        part: which of several processes that share the folder, each with cases of its own; names its lock.
        probabilities: whether the probabilities belong to every case.
    """

    def __init__(self, folder: Path, ending: str, part: str = "", probabilities: bool = False):
        self.folder, self.ending, self.part = folder, ending, part
        self.endings = (ending, ".npz", ".pkl") if probabilities else (ending,)
        self._lock: IO[str] | None = None

    def __enter__(self) -> OutputFolder:
        """Takes the folder for this process.

        Raises:
            InputError: when it cannot be written or another process uses it.
        """
        try:
            (self.folder / HIDDEN).mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / HIDDEN / f"lock{self.part}").open("a+")
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror or error}); choose another with -o"
            ) from error
        if not _lock_file(self._lock):
            self._lock.seek(0)
            who = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise InputError(
                f"{self.folder}: another swinfuse_predict (process {who}) is using it. Wait for it, choose another "
                "folder, or divide the cases with -num_parts and -part_id"
            )
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        shutil.rmtree(self._partial, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    @property
    def _partial(self) -> Path:
        return self.folder / HIDDEN / f"partial{self.part}"

    def mask(self, case: str) -> Path:
        """Where the mask of a case belongs."""
        return self.folder / f"{case}{self.ending}"

    def draft(self, case: str) -> Path:
        """Where nnU-Net writes the files of a case first, without their endings."""
        self._partial.mkdir(parents=True, exist_ok=True)
        return self._partial / case

    def earlier(self, case: str) -> tuple[bool, dict[str, Any] | None]:
        """Whether all files of a case exist, and the record of their origin if it is theirs.

        Returns:
            True and None for a mask of another program, or one that was changed since.
        """
        if not all((self.folder / f"{case}{ending}").is_file() for ending in self.endings):
            return False, None
        try:
            record = json.loads(self._record(case).read_text())
            digest = file_hash(self.mask(case))
            if record["mask_sha256"] == digest:
                return True, record
            if record["replaces"] == digest:
                # Killed between the record and the mask that was to replace this one.
                return False, None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return True, None

    def publish(self, case: str, record: Mapping[str, Any]) -> str:
        """Moves the drafted files of a case in place, the record first; returns the mask's SHA-256.

        Raises:
            InputError: when the disk is full or the folder cannot be written.
        """
        digest = file_hash(Path(f"{self.draft(case)}{self.ending}"))
        try:
            replaced = file_hash(self.mask(case)) if self.mask(case).is_file() else None
            write_text(
                self._record(case), json.dumps({**record, "mask_sha256": digest, "replaces": replaced}, indent=2)
            )
            for ending in reversed(self.endings):
                move_into_place(Path(f"{self.draft(case)}{ending}"), self.folder / f"{case}{ending}")
        except OSError as error:
            raise InputError(f"{self.mask(case)}: cannot be written ({error.strerror or error}); make room") from error
        return digest

    def _record(self, case: str) -> Path:
        return self.folder / HIDDEN / f"{case}.json"


def _lock_file(file: IO[str]) -> bool:
    """Takes an advisory lock that ends with the process; False when another holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
