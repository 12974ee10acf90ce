"""Errors that a user can resolve, and how commands print them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# As argparse and swinfuse_pretrain exit for input they cannot use.
EXIT_STATUS = 2
# What to do about a file of a newer version; the package is on no index.
UPGRADE = "install the newer wheel or checkout (docs/installation.md)"
INSTALL_BENCHMARK = 'install the extra: pip install ".[benchmark]" in a checkout (docs/installation.md)'


class SwinFUSEError(Exception):
    """Something that a user can resolve: the message names it and says what to do.

    This package's commands print the message without a traceback and exit with status 2. nnU-Net's own commands, such
    as `nnUNetv2_train`, know nothing of this class and print a traceback that ends with the message.
    """


class InputError(SwinFUSEError, ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


class BenchmarkError(SwinFUSEError):
    """Bad input of a comparison or a failed step of it: what was found, what was expected and what to do."""


def escape_unprintable_names() -> None:
    """Lets a command print names of files in any encoding: bytes that standard output cannot hold become escapes."""
    for stream in (sys.stdout, sys.stderr):
        # A test or a notebook can have replaced them by something that never encodes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A context in which an error of the operating system is one of a file or folder that cannot be read.

    Args:
        path: named where the error itself names no file.

    Raises:
        InputError: naming the file or folder.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: cannot be read ({error.strerror or error}); check its permissions and the disk"
        ) from error


@contextmanager
def errors_without_traceback(program: str, *others: type[Exception]) -> Iterator[None]:
    """A context in which an error that a user can resolve ends the program with its message and status 2.

    Args:
        program: name of the command, printed before the message.
        others: further classes to treat as :class:`SwinFUSEError`.
    """
    escape_unprintable_names()
    expected: tuple[type[Exception], ...] = (SwinFUSEError, *others)
    try:
        yield
    except expected as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(EXIT_STATUS) from None
