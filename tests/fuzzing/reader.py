"""A reader of files, and how it is judged.

A reader either refuses a file with a named error (`judge` returns False) or gives what the file holds (True). Anything
else is a bug: another exception, or values that differ where the format has checksums. Where it has none, as in an
uncompressed NIfTI file, "what the file holds" is what its damaged bytes say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reader:
    """A format and what reads it.

    Attributes:
        name: for the table.
        file: what the damaged file is called.
        sound: returns the content of a sound file.
        judge: writes content to a path, reads it; True when it was read, False when it was refused by name.
        text: whether the content is JSON.
    """

    name: str
    file: str
    sound: Callable[[], bytes]
    judge: Callable[[bytes, Path], bool]
    text: bool = False


def refused(path: Path, error: Exception) -> bool:
    """The verdict on a refusal; the error must name the file."""
    if str(path) not in str(error):
        raise AssertionError(f"unnamed: {error}") from error
    return False
