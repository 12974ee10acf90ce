"""nnU-Net's raw datasets: `imagesTr/CASE_XXXX.nii.gz` and `dataset.json`. Images only; labels are not read.

Each channel becomes a volume. nnU-Net requires the channels of a case to be registered, so a case with one CT and one
MR channel is a registered pair. Test images (`imagesTs`) are not used. Format: nnU-Net's
documentation/dataset_format.md.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, IMAGES, LABELS
from pretraining.collections.collection import Collection, Patient, Volume, volume_stem
from pretraining.collections.modalities import ModalityMap

LAYOUT = "nnU-Net raw"
DESCRIPTION = DATASET_FILE


def matches(root: Path) -> bool:
    """Whether there is a `dataset.json`."""
    return (root / DESCRIPTION).is_file()


def read(name: str, root: Path, modalities: ModalityMap, unpaired: bool = False) -> Collection:
    """A patient for each training case.

    Raises:
        InputError: for a damaged dataset.json, an unknown modality, and for files that are no channel, missing
            channels, two files for one channel and labels without images, which are all named.
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
    problems = [
        f"{case}: {len(files)} images are listed, but {len(names)} channels are in channel_names of {DESCRIPTION}"
        for case, files in cases.items()
        if set(files) - set(names)
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
        domains_of_case = [volume.domain for volume in volumes]
        paired = not unpaired and domains_of_case.count("CT") == domains_of_case.count("MR") == 1
        if volumes:
            patients.append(Patient(case, volumes, paired))
    return Collection(name, LAYOUT, root, tuple(patients))


def kept_channels(root: Path, modalities: ModalityMap) -> list[int]:
    """The numbers of the channels whose volumes :func:`read` does not leave out, in the order of a case's volumes."""
    names = _describe(root)["channel_names"]
    return sorted(c for c, modality in names.items() if modalities.domain(modality, root / DESCRIPTION) is not None)


def _describe(root: Path) -> dict[str, Any]:
    """Reads `dataset.json`; the keys of `channel_names` become integers."""
    path = root / DESCRIPTION
    try:
        content = json.loads(path.read_text())
        # Old datasets, converted from the Medical Segmentation Decathlon, have the key "modality".
        channels = content["channel_names"] if "channel_names" in content else content["modality"]
        return {**content, "channel_names": {int(number): str(modality) for number, modality in channels.items()}}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: not in nnU-Net's format ({error!r}); expected channel_names such as {{'0': 'CT'}}"
        ) from error


def _cases(root: Path, channels: set[int]) -> dict[str, dict[int, Path]]:
    """Files by case and channel, of all files in `imagesTr`."""
    cases: dict[str, dict[int, Path]] = {}
    problems = []
    for path in sorted((root / IMAGES).iterdir()) if (root / IMAGES).is_dir() else []:
        if path.name.startswith("."):
            continue
        stem = volume_stem(path)
        match = re.fullmatch(r"(.+)_(\d{4})", stem or "")
        if match is None or int(match[2]) not in channels:
            problems.append(f"{path}: not a channel of a case; expected a name such as CASE_{min(channels):04d}.nii.gz")
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
    """Files by case and channel, as listed in dataset.json under `dataset`, relative to the folder."""
    try:
        return {
            case: {channel: root / os.path.expandvars(file) for channel, file in enumerate(entry["images"])}
            for case, entry in description["dataset"].items()
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{root / DESCRIPTION}: 'dataset' lists no images ({error!r})") from error


def _listing(root: Path, problems: list[str]) -> str:
    return f"{root}: {len(problems)} problem(s), nothing was changed:\n  " + "\n  ".join(problems)
