"""nnU-Net's raw datasets: `imagesTr/CASE_XXXX.nii.gz` and `dataset.json`. Images only; labels are not read.

Channels become volumes of their own. nnU-Net demands that those of a case are registered, so a case with one CT and one
MR channel is a pair. Test images (`imagesTs`) are left to testing. Format: nnU-Net's documentation/dataset_format.md.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from pretraining.collections.collection import Collection, Patient, Volume, volume_stem
from pretraining.collections.modalities import ModalityMap
from pretraining.errors import InputError

LAYOUT = "nnU-Net raw"
DESCRIPTION = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"


def matches(root: Path) -> bool:
    """Whether there is a `dataset.json` with images beside it or named in it."""
    return (root / DESCRIPTION).is_file()


def read(name: str, root: Path, modalities: ModalityMap, unpaired: bool = False) -> Collection:
    """A patient for each training case.

    Raises:
        InputError: for a damaged dataset.json, an unknown modality, and, all together: files that are no channel,
            missing channels, two files for one channel, labels without images.
    """
    description = _describe(root)
    names = description["channel_names"]
    domains = {channel: modalities.domain(modality, root / DESCRIPTION) for channel, modality in names.items()}
    cases = _listed_cases(root, description) if "dataset" in description else _cases(root, set(names))
    problems = [
        f"{case}: no file for channel {channel} ({names[channel]}); {len(names)} channels are in {DESCRIPTION}"
        for case, files in cases.items()
        for channel in sorted(set(names) - set(files))
    ]
    if problems:
        raise InputError(_listing(root, problems))
    repeated = len(set(names.values())) < len(names)
    patients = []
    for case, files in sorted(cases.items()):
        volumes = tuple(
            Volume(names[channel], domain, path, name=f"{names[channel]}_{channel:04d}" if repeated else "")
            for channel, path in sorted(files.items())
            if (domain := domains[channel]) is not None
        )
        sides = [volume.domain for volume in volumes]
        paired = not unpaired and sides.count("CT") == sides.count("MR") == 1
        if volumes:
            patients.append(Patient(case, volumes, paired))
    return Collection(name, LAYOUT, root, tuple(patients))


def _describe(root: Path) -> dict[str, Any]:
    """`dataset.json`, with its channels as numbers."""
    path = root / DESCRIPTION
    try:
        content = json.loads(path.read_text())
        # Old datasets, converted from the Medical Segmentation Decathlon, call it modality.
        channels = content["channel_names"] if "channel_names" in content else content["modality"]
        return {**content, "channel_names": {int(number): str(modality) for number, modality in channels.items()}}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: no dataset.json of nnU-Net ({error!r}); expected channel_names such as {{'0': 'CT'}}"
        ) from error


def _cases(root: Path, channels: set[int]) -> dict[str, dict[int, Path]]:
    """File by case and channel, of all that lies in `imagesTr`."""
    cases: dict[str, dict[int, Path]] = {}
    problems = []
    for path in sorted((root / IMAGES).iterdir()) if (root / IMAGES).is_dir() else []:
        if path.name.startswith("."):
            continue
        stem = volume_stem(path)
        match = re.fullmatch(r"(.+)_(\d{4})", stem or "")
        if match is None or int(match[2]) not in channels:
            problems.append(f"{path}: no channel of a case; expected CASE_{min(channels):04d}.nii.gz and the like")
            continue
        files, channel = cases.setdefault(match[1], {}), int(match[2])
        if channel in files:
            problems.append(f"two files for one modality: {files[channel]} and {path}; remove one of them")
        files[channel] = path
    for path in sorted((root / LABELS).iterdir()) if (root / LABELS).is_dir() else []:
        stem = volume_stem(path)
        if stem is not None and stem not in cases:
            problems.append(f"{path}: a label without its image; restore {stem}_0000 in {IMAGES}, or remove the label")
    if problems:
        raise InputError(_listing(root, problems))
    return cases


def _listed_cases(root: Path, description: dict[str, Any]) -> dict[str, dict[int, Path]]:
    """File by case and channel, where dataset.json lists them (its key `dataset`); relative to the folder."""
    try:
        return {
            case: {channel: root / os.path.expandvars(file) for channel, file in enumerate(entry["images"])}
            for case, entry in description["dataset"].items()
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{root / DESCRIPTION}: 'dataset' lists no images ({error!r})") from error


def _listing(root: Path, problems: list[str]) -> str:
    return f"{root}: {len(problems)} problem(s), nothing was changed:\n  " + "\n  ".join(problems)
