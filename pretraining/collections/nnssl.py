"""nnssl's `pretrain_data.json`: collection -> datasets -> subjects -> sessions -> images.

Format: nnssl's `nnssl/data/raw_dataset.py`. Subjects are the patients: all sessions of a subject are used for training,
or all for validation. Images of a subject are never registered pairs, since the file does not say which are. Of the
`associated_masks`, the anatomy mask marks the body, in which crops are centred, and the anonymization mask marks what
was removed from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import Collection, Patient, Volume, volume_stem
from pretraining.collections.modalities import ModalityMap

LAYOUT = "nnssl"
DESCRIPTION = "pretrain_data.json"
ANATOMY, ANONYMIZATION = "anatomy_mask", "anonymization_mask"


def matches(root: Path) -> bool:
    """Whether there is a `pretrain_data.json`."""
    return (root / DESCRIPTION).is_file()


def read(name: str, root: Path, modalities: ModalityMap) -> Collection:
    """A patient for each subject of each dataset.

    Raises:
        InputError: for a damaged file, an unknown modality, a path that starts with a variable that is not set, and
            for images listed twice and masks without an image, which are all named.
    """
    path = root / DESCRIPTION
    patients: list[Patient] = []
    problems: list[str] = []
    listed: dict[Path, str] = {}
    try:
        for identifier, images in _subjects(json.loads(path.read_text())):
            volumes = []
            for session, image in images:
                masks = image.get("associated_masks") or {}
                location = f"{identifier}, session {session}"
                if not image.get("image_path"):
                    has_mask = masks.get(ANATOMY) or masks.get(ANONYMIZATION)
                    problems.append(
                        f"{location}: {'a mask without its image' if has_mask else 'an image without image_path'}"
                    )
                    continue
                domain = modalities.domain(image["modality"], f"{path}, {location}")
                if domain is None:
                    continue
                file = resolve(image["image_path"], root)
                if file in listed:
                    problems.append(f"{location}: {file} is listed twice, first in {listed[file]}")
                listed[file] = location
                anatomy, anonymization = (
                    resolve(masks[mask], root) if masks.get(mask) else None for mask in (ANATOMY, ANONYMIZATION)
                )
                stem = volume_stem(file) or file.name
                volumes.append(Volume(image["modality"], domain, file, anatomy, anonymization, f"{session}_{stem}"))
            if volumes:
                patients.append(Patient(identifier, tuple(volumes), paired=False))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: not in nnssl's format ({error!r}); expected datasets -> subjects -> sessions -> images, each "
            "image with modality and image_path"
        ) from error
    if problems:
        raise InputError(f"{path}: {len(problems)} problem(s), nothing was changed:\n  " + "\n  ".join(problems))
    return Collection(name, LAYOUT, root, tuple(sorted(patients, key=lambda patient: patient.identifier)))


def resolve(written: str, root: Path) -> Path:
    """The path of an image: absolute, relative to the file, or starting with a variable, such as `$nnssl_raw/...`.

    Raises:
        InputError: when the variable is not set.
    """
    first, _, remainder = written.partition("/")
    if not first.startswith("$"):
        return root / written
    folder = os.environ.get(first[1:])
    if not folder:
        raise InputError(
            f"{root / DESCRIPTION}: {written} starts with {first}, which is not set; "
            f"for example: export {first[1:]}=/data/{first[1:]}"
        )
    return Path(folder) / remainder


def _subjects(content: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """Yields `dataset/subject` and the images of the subject, each with its session."""
    for index, dataset in content["datasets"].items():
        for subject_id, subject in dataset["subjects"].items():
            images = [
                (str(session_id), image)
                for session_id, session in subject["sessions"].items()
                for image in session["images"]
            ]
            yield f"{index}/{subject_id}", images
