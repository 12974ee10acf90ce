"""Which files are which case: nnU-Net's `CASE_0000.nii.gz`, and plain names where the model has one channel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.findings import Finding, Severity

_NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass
class InputCase:
    """A case to be checked and predicted.

    Attributes:
        name: of the case, and of its mask.
        files: by channel number.
        problems: what is wrong with the set of files.
    """

    name: str
    files: dict[int, Path] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)


def find_cases(inputs: Sequence[Path], ending: str, channels: int) -> list[InputCase]:
    """Sorts files into cases; hidden files and a folder's own `.json`, `.txt` and `.md` files are not images.

    Args:
        inputs: files and folders; of a folder all files, not those of its subfolders.
        ending: of the model's images.
        channels: how many the model needs.

    Returns:
        All cases by name. A file that cannot belong to one is a case with a problem, so that nothing is left out.

    Raises:
        InputError: for a path that is not there, and when there is no file at all.
    """
    cases: dict[str, InputCase] = {}
    for path in _files(inputs):
        if not path.name.endswith(ending) or len(path.name) == len(ending):
            cases[path.name] = _refused(
                path, f"ends in {''.join(path.suffixes) or 'nothing'}, the model's images end in {ending}",
                f"Convert it to {ending}.",
            )  # fmt: skip
            continue
        stem = path.name[: -len(ending)]
        numbered = _NUMBERED.fullmatch(stem)
        name, channel = (numbered["case"], int(numbered["channel"])) if numbered else (stem, 0)
        if numbered is None and channels > 1:
            cases[path.name] = _refused(
                path, f"has no channel number; the model needs {channels} channels", f"Name it CASE_0000{ending}.",
            )  # fmt: skip
            continue
        case = cases.setdefault(name, InputCase(name))
        if channel in case.files:
            case.problems.append(
                Finding(
                    "channels",
                    Severity.REFUSED,
                    f"{path} and {case.files[channel]} are the same channel of one case",
                    "Rename or remove one of them.",
                    str(path),
                )
            )
            continue
        case.files[channel] = path
    for case in cases.values():
        if not case.problems:
            case.problems += _channel_problems(case, channels, ending)
    if not cases:
        raise InputError(f"{', '.join(map(str, inputs))}: no images; expected files named CASE_0000{ending}")
    return [cases[name] for name in sorted(cases)]


def _files(inputs: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files += sorted(
                file
                for file in path.iterdir()
                if not file.is_dir() and not file.name.startswith(".") and file.suffix not in (".json", ".txt", ".md")
            )
        elif path.exists() or path.is_symlink():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder. -i takes images, or a folder of images")
    return list(dict.fromkeys(files))


def _refused(path: Path, reason: str, remedy: str) -> InputCase:
    return InputCase(path.name, {0: path}, [Finding("file_name", Severity.REFUSED, reason, remedy, str(path))])


def _channel_problems(case: InputCase, channels: int, ending: str) -> list[Finding]:
    missing = [number for number in range(channels) if number not in case.files]
    surplus = [number for number in case.files if number >= channels]
    if not missing and not surplus:
        return []
    words = []
    if missing:
        words.append("misses " + ", ".join(f"{case.name}_{number:04d}{ending}" for number in missing))
    if surplus:
        words.append("has " + ", ".join(case.files[number].name for number in sorted(surplus)) + " too many")
    return [
        Finding(
            "channels",
            Severity.REFUSED,
            f"{' and '.join(words)}: the model needs {channels} channel(s) a case",
            "Give exactly these channels, numbered from 0000 in the order of the model's dataset.json.",
        )
    ]
