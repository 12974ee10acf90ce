"""PyTorch files of plain tensors and values: checked, read without code execution, and written atomically."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import torch

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write

# A zip's attribute of folders: PyTorch's reader skips the bytes of such a record and leaves memory as it was.
FOLDER = 0x10


class TorchFileError(ValueError):
    """A file that cannot be read; the message names it and says what is wrong with it, but not what to do.

    Attributes:
        needs_code: it may be intact, but reading it would run code that it contains.
    """

    def __init__(self, message: str, needs_code: bool = False):
        super().__init__(message)
        self.needs_code = needs_code


def load_torch_file(path: Path | IO[bytes], name: str | None = None) -> Any:
    """Reads a file with `torch.load(weights_only=True)` onto the CPU.

    PyTorch does not verify the checksums in its zip files, so that a flipped bit would change a weight unnoticed. They
    are verified here. Files of PyTorch before 1.6 have none.

    Args:
        path: the file, or its content.
        name: for messages, where content is given.

    Raises:
        TorchFileError: when the file cannot be opened, is damaged, or needs code execution.
    """
    name = name or str(path)
    try:
        opened = path.open("rb") if isinstance(path, Path) else nullcontext(path)
    except OSError as error:
        raise TorchFileError(f"{name}: cannot be opened ({error.strerror})") from error
    with opened as file:
        try:
            check_zip(file)
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise TorchFileError(
                f"{name}: needs code execution to be read, or is corrupted, and was refused ({_reason(error)})",
                needs_code=True,
            ) from error
        except Exception as error:
            # Any exception: damaged bytes make the unpickler raise IndexError, AttributeError, struct.error and others.
            raise TorchFileError(
                f"{name}: corrupted or not a PyTorch file ({type(error).__name__}: {_reason(error)})"
            ) from error


def map_torch_file(path: Path) -> Any:
    """The same without reading the tensors, which are mapped into memory, nor their checksums: for a number in a file.

    Raises:
        TorchFileError: when the file cannot be opened, is damaged, or needs code execution.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise TorchFileError(f"{path}: cannot be read ({type(error).__name__}: {_reason(error)})") from error


def save_torch_file(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """`torch.save`, atomically: see :func:`atomic_write`.

    Raises:
        OSError: when the disk is full or the folder cannot be written; an older file at `path` is left as it was.
    """
    # Not to the path: PyTorch would write the temporary name into the file, and equal content would differ.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(content), file)


def check_zip(file: IO[bytes]) -> None:
    """Compares the checksums in a zip file, which PyTorch does not; leaves other files to PyTorch.

    Raises:
        zipfile.BadZipFile: naming the record that is damaged.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            folders = [record.filename for record in archive.infolist() if record.external_attr & FOLDER]
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong: its bytes have changed since it was written")
        if folders:
            raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")
    file.seek(0)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or ["no message"]
    # PyTorch's first line advises to load without the restriction.
    for line in lines:
        if "WeightsUnpickler error:" in line:
            return line.split("WeightsUnpickler error:")[1].strip() or "no pickle of tensors"
    return lines[0]
