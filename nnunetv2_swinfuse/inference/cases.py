"""Which files are which case: nnU-Net's `CASE_0000.nii.gz`, and plain names where the model has one channel."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_swinfuse.errors import InputError, reading
from nnunetv2_swinfuse.inference.findings import Finding, Severity

# Of a folder of masks: what OutputFolder writes there.
RECORDS = ".swinfuse"
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
        All cases by name. A file that cannot belong to one, and a subfolder with files, is a case with a problem, so
        that nothing is left out.

    Raises:
        InputError: for a path that is not there, or that cannot be read, and when there is no file at all.
    """
    files, subfolders = _list(inputs)
    images = {path: path.name[: -len(ending)] for path in files if path.name.endswith(ending) and path.name != ending}
    stems = set(images.values())
    cases: dict[str, InputCase] = {}
    for path, stem in images.items():
        name, channel = _case_and_channel(stem, channels, stems)
        if channel is None:
            _refuse(
                cases, path, path.name, f"has no channel number; the model needs {channels} channels",
                f"Name it CASE_0000{ending}.",
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
    for path in files:
        if path not in images:
            _refuse(
                cases, path, path.name,
                f"ends in {''.join(path.suffixes) or 'nothing'}, the model's images end in {ending}",
                f"Convert it to {ending}.",
            )  # fmt: skip
    for path, example in subfolders.items():
        # The slash keeps it apart from a case of the same name.
        _refuse(
            cases, path, f"{path.name}/", f"a subfolder that holds files, such as {example}; subfolders are not read",
            "Name the subfolder with -i, or move it elsewhere.",
        )  # fmt: skip
    if not cases:
        raise InputError(f"{', '.join(map(str, inputs))}: no images; expected files named CASE_0000{ending}")
    return [cases[name] for name in sorted(cases)]


def _list(inputs: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """All files; and the subfolders that hold files, with one of them."""
    files: list[Path] = []
    subfolders: dict[Path, Path] = {}
    given = {path.resolve() for path in inputs}
    for path in inputs:
        with reading(path):
            if path.is_dir():
                for entry in sorted(entry for entry in path.iterdir() if not _no_image(entry)):
                    if not entry.is_dir():
                        files.append(entry)
                    elif entry.resolve() not in given and (example := _first_file(entry)):
                        subfolders[entry] = example
            elif path.exists() or path.is_symlink():
                files.append(path)
            else:
                raise InputError(f"{path}: no such file or folder. -i takes images, or a folder of images")
    return list(dict.fromkeys(files)), subfolders


def _first_file(folder: Path) -> Path | None:
    """A file that could be an image, in a folder or below it; an output folder of swinfuse_predict has none."""
    if (folder / RECORDS).is_dir():
        return None
    entries = sorted(entry for entry in folder.iterdir() if not _no_image(entry))
    found = (_first_file(entry) if entry.is_dir() and not entry.is_symlink() else entry for entry in entries)
    return next((file for file in found if file is not None), None)


def _no_image(path: Path) -> bool:
    return path.name.startswith(".") or path.suffix in (".json", ".txt", ".md")


def _case_and_channel(stem: str, channels: int, stems: Container[str]) -> tuple[str, int | None]:
    """Case and channel by a file's name; no channel where a model with several needs a number.

    With one channel, four digits at the end are part of any name, such as dcm2niix's, which ends with the number of the
    series. They are a channel number if they are 0000, or if the case has a file with 0000 as well.
    """
    numbered = _NUMBERED.fullmatch(stem)
    if numbered is not None and (channels > 1 or f"{numbered['case']}_0000" in stems):
        return numbered["case"], int(numbered["channel"])
    return stem, 0 if channels == 1 else None


def _refuse(cases: dict[str, InputCase], path: Path, name: str, reason: str, remedy: str) -> None:
    case = cases.setdefault(name, InputCase(name))
    case.files[max(case.files, default=-1) + 1] = path
    case.problems.append(Finding("file_name", Severity.REFUSED, reason, remedy, str(path)))


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
