"""A folder of masks that survives kills and a second process: masks appear complete, with a record of their origin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from nnunetv2_swinfuse.architecture.atomic_write import move_into_place, write_text
from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import NOT_UTF8, is_utf8
from nnunetv2_swinfuse.inference.cases import RECORDS
from nnunetv2_swinfuse.inference.folder_lock import FolderInUseError, lock_folder
from nnunetv2_swinfuse.inference.model_files import file_hash
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, PLANS_FILE

# nnU-Net's files of a case's probabilities.
PROBABILITIES = (".npz", ".pkl")


class OutputFolder:
    """Masks, their records (`.swinfuse/CASE.json`), pictures and reports, and a lock against other processes.

    Args:
        folder: of the masks; is created.
        ending: of the masks.
        probabilities: whether the probabilities belong to every case.
        part: which part of the cases is this process's, from 0 on.
        parts: how many processes share the folder, each with cases of its own.
    """

    def __init__(self, folder: Path, ending: str, probabilities: bool = False, part: int = 0, parts: int = 1):
        self.folder, self.ending, self.part, self.parts = folder, ending, part, parts
        self.endings = (ending, *PROBABILITIES) if probabilities else (ending,)
        self._suffix = f"_part{part}of{parts}" if parts > 1 else ""
        self._lock: FileLock | None = None

    def __enter__(self) -> OutputFolder:
        """Takes the folder for this process.

        Raises:
            InputError: when it cannot be written or another process uses it.
        """
        if not is_utf8(self.folder):
            raise InputError(f"{self.folder}: {NOT_UTF8[0]}; choose another with -o")
        try:
            (self.folder / RECORDS).mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.folder / RECORDS, self.part, self.parts)
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(exist_ok=True)
        except FolderInUseError as error:
            raise InputError(
                f"{self.folder}: another swinfuse_predict ({error}) is using it. Wait for it, choose another folder, "
                "or divide the cases with -num_parts and -part_id, in all processes"
            ) from error
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.folder}: cannot be written ({reason}); choose another with -o") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()

    @property
    def report(self) -> Path:
        """Where the report of this process belongs."""
        return self.folder / f"report{self._suffix}.json"

    @property
    def _partial(self) -> Path:
        return self.folder / RECORDS / f"partial{self._suffix}"

    def mask(self, case: str) -> Path:
        """Where the mask of a case belongs."""
        return self._file(case, self.ending)

    def overlay(self, case: str) -> Path:
        """Where the picture of a case belongs."""
        return self.folder / "overlays" / f"{case}.png"

    def draft(self, case: str) -> Path:
        """Where nnU-Net writes the files of a case first, without their endings."""
        return self._partial / case

    def protect(self, inputs: Iterable[Path], cases: Iterable[str], images: Iterable[Path] = ()) -> None:
        """Refuses a folder in which an output would replace or join the inputs, before anything is written.

        Follows links.

        Args:
            inputs: files that must stay as they are.
            cases: names of the cases whose outputs would be written.
            images: files and folders that `-i` names; the next run would take masks beside them for images.

        Raises:
            InputError: naming the file or folder.
        """
        protected = {_identity(path): path for path in inputs if path.exists()}
        outputs = [self.report, self.folder / DATASET_FILE, self.folder / PLANS_FILE]
        for case in cases:
            outputs += [self._file(case, ending) for ending in self.endings]
            outputs.append(self.overlay(case))
        for output in outputs:
            if output.exists() and (replaced := protected.get(_identity(output))):
                raise InputError(
                    f"{output}: this output file would replace an input file, {replaced}. Nothing was written; choose "
                    "another folder with -o"
                )
        folders = {_identity(path if path.is_dir() else path.parent) for path in images}
        if self.folder.exists() and _identity(self.folder) in folders:
            raise InputError(
                f"{self.folder}: the folder of images that -i names, where masks would be taken for images by the next "
                "run. Nothing was written; choose another folder with -o"
            )

    def earlier(self, case: str) -> tuple[bool, dict[str, Any] | None]:
        """Whether the mask of a case exists, and the record of its origin if it is that mask's.

        Returns:
            True and None for a mask of another program, or one that was changed since.
        """
        if not self.mask(case).is_file():
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

    def is_complete(self, case: str, record: Mapping[str, Any]) -> bool:
        """Whether all files of a case exist that belong to it, from the prediction that its record describes."""
        return all(
            ending in record.get("endings", ()) and self._file(case, ending).is_file() for ending in self.endings
        )

    def publish(self, case: str, record: Mapping[str, Any]) -> str:
        """Moves the drafted files of a case in place, the record first; returns the mask's SHA-256.

        Raises:
            InputError: when the disk is full or the folder cannot be written.
        """
        digest = file_hash(Path(f"{self.draft(case)}{self.ending}"))
        try:
            replaced = file_hash(self.mask(case)) if self.mask(case).is_file() else None
            files = {"endings": self.endings, "mask_sha256": digest, "replaces": replaced}
            write_text(self._record(case), json.dumps({**record, **files}, indent=2))
            # They belong to the mask that is being replaced; ensembling would read its probabilities.
            for path in (self.overlay(case), *(self._file(case, ending) for ending in PROBABILITIES)):
                path.unlink(missing_ok=True)
            for ending in reversed(self.endings):
                move_into_place(Path(f"{self.draft(case)}{ending}"), self._file(case, ending))
        except OSError as error:
            raise InputError(f"{self.mask(case)}: cannot be written ({error.strerror or error}); make room") from error
        return digest

    def _record(self, case: str) -> Path:
        return self.folder / RECORDS / f"{case}.json"

    def _file(self, case: str, ending: str) -> Path:
        return self.folder / f"{case}{ending}"


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of a file, such as links."""
    status = path.stat()
    return status.st_dev, status.st_ino
