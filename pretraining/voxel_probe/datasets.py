"""Labelled datasets in nnUNet_raw for the voxel probe, and their split into labelled and test cases."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import Volume, volume_stem
from pretraining.collections.modalities import ModalityMap
from pretraining.collections.names import dataset_folders
from pretraining.collections.nnunet_raw import DESCRIPTION, LABELS, kept_channels, read

BACKGROUND = "background"
IGNORE = "ignore"
# Test cases at most: more make intervals shorter, but the probe slower.
MOST_TEST_CASES = 40
# The words of a label's name, sorted: `kidney_right` and `Right kidney` are one organ.
LabelKey = tuple[str, ...]


@dataclass(frozen=True)
class LabelledCase:
    """A case of a labelled dataset.

    Attributes:
        name: name of the case.
        volume: its image.
        label: its label file.
    """

    name: str
    volume: Volume
    label: Path


@dataclass(frozen=True)
class LabelledDataset:
    """A labelled dataset.

    Attributes:
        name: name of its folder.
        labels: name of each label by its value, without background and ignore, in ascending order of the values.
        ignored: value of voxels that take part in nothing, None if there is none.
        cases: sorted by name.
    """

    name: str
    labels: Mapping[int, str]
    ignored: int | None
    cases: tuple[LabelledCase, ...]

    @property
    def number(self) -> str:
        """See :func:`dataset_number`."""
        return dataset_number(self.name)


@dataclass(frozen=True)
class CaseSplit:
    """Cases by purpose.

    Attributes:
        labelled: cases to fit on; a probe with n labelled cases uses the first n, so that smaller sets are subsets.
        test: cases to measure on, the same for every number of labelled cases.
        numbers: the only numbers of labelled cases to fit on; empty where all are possible.
    """

    labelled: tuple[LabelledCase, ...]
    test: tuple[LabelledCase, ...]
    numbers: tuple[int, ...] = ()


def dataset_number(name: str) -> str:
    """`501` for `Dataset501_Hippocampus`; the whole name for other folders."""
    match = re.match(r"Dataset(\d{3})_", name)
    return match[1] if match else name


def find_dataset(name: str, raw_root: Path, modalities: ModalityMap, channel: int = 0) -> LabelledDataset:
    """Reads a labelled dataset.

    Args:
        name: folder in nnUNet_raw, or the number of an nnU-Net dataset.
        raw_root: the folder nnUNet_raw.
        modalities: which modality is CT and which MR.
        channel: the channel to use of every case; encoders have a single one.

    Raises:
        InputError: when there is no such dataset, it has no labels, labels that are regions, or cases without a label.
    """
    folders = dataset_folders(name, raw_root) or (
        [raw_root / name] if (raw_root / name / DESCRIPTION).is_file() else []
    )
    if len(folders) != 1:
        listing = ", ".join(sorted(path.parent.name for path in raw_root.glob(f"*/{DESCRIPTION}"))) or "nothing"
        raise InputError(
            f"{name}: {len(folders)} datasets in {raw_root} have this name or number, expected one with a "
            f"{DESCRIPTION}; available: {listing}"
        )
    root = folders[0]
    collection = read(root.name, root, modalities)
    label_files = _label_files(root)
    labels, ignored = _labels(root)
    kept = kept_channels(root, modalities)
    if channel not in kept:
        raise InputError(f"{root}: no channel {channel}; there are {', '.join(map(str, kept)) or 'none'}")
    cases, missing = [], []
    for patient in collection.patients:
        if patient.identifier in label_files:
            volume = patient.volumes[kept.index(channel)]
            cases.append(LabelledCase(patient.identifier, volume, label_files[patient.identifier]))
        else:
            missing.append(patient.identifier)
    if missing:
        raise InputError(
            f"{root}: no label in {LABELS} for {len(missing)} case(s), such as {missing[0]}; add the labels, or "
            "remove these images"
        )
    return LabelledDataset(root.name, labels, ignored, tuple(cases))


def split_cases(dataset: LabelledDataset, seed: int, test: int | None = None) -> CaseSplit:
    """Draws test cases, then the order of the others; depends only on the seed and the names of the cases.

    Args:
        dataset: the labelled dataset.
        seed: seed of the draw.
        test: number of test cases; half of the cases when None, at most 40.

    Raises:
        InputError: when no case remains for either purpose.
    """
    count = len(dataset.cases)
    test = min(count // 2, MOST_TEST_CASES) if test is None else test
    if not 1 <= test < count:
        raise InputError(f"{dataset.name}: {test} test cases of {count}; expected at least 1, and 1 case to fit on")
    order = [dataset.cases[index] for index in np.random.default_rng(seed).permutation(count)]
    return CaseSplit(tuple(order[test:]), tuple(order[:test]))


def stored_split(dataset: LabelledDataset, path: Path, seed: int) -> CaseSplit:
    """The cases that `swinfuse_benchmark` fine-tunes on with a seed and tests, from its `splits.json`.

    Args:
        dataset: the labelled dataset.
        path: the file: by dataset and `N_labels__seed_S__fold_F`, lists of names `train` and `val`, the latter the same
            for every N. Fold 0 is used.
        seed: seed of the comparison.

    Raises:
        InputError: for a file without splits of this dataset and seed, or with names of other cases.
    """
    try:
        splits = json.loads(path.read_text())[dataset.name]
        found = [value for key, value in splits.items() if key.endswith(f"_labels__seed_{seed}__fold_0")]
        sets = [list(map(str, entry["train"])) for entry in sorted(found, key=lambda entry: len(entry["train"]))]
        test = [str(name) for name in found[0]["val"]] if found else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: no splits of {dataset.name} ({type(error).__name__}: {error}); expected the splits.json of "
            "swinfuse_benchmark's results"
        ) from error
    if not sets:
        raise InputError(f"{path}: no split of {dataset.name} with seed {seed}; it has {', '.join(splits)}")
    # Smaller sets are subsets of larger ones.
    order = list(dict.fromkeys(name for names in sets for name in names))
    cases = {case.name: case for case in dataset.cases}
    if unknown := sorted({*order, *test} - set(cases)):
        raise InputError(f"{path}: {', '.join(unknown[:5])} are no cases of {dataset.name}")
    numbers = tuple(len(names) for names in sets)
    return CaseSplit(tuple(cases[name] for name in order), tuple(cases[name] for name in test), numbers)


def common_labels(first: LabelledDataset, second: LabelledDataset) -> tuple[LabelKey, ...]:
    """The labels that both datasets have, in the order of the first; raises InputError if there are none."""
    others = {label_key(name) for name in second.labels.values()}
    common = tuple(key for name in first.labels.values() if (key := label_key(name)) in others)
    if not common:
        raise InputError(
            f"{first.name} has labels {', '.join(first.labels.values())}, {second.name} has "
            f"{', '.join(second.labels.values())}; a probe of one on the other needs a name in common"
        )
    return common


def label_key(name: str) -> LabelKey:
    """What identifies a label across datasets: the words of its name, in any script, in lower case, sorted."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name).casefold())
    # Names of signs only are not all the same.
    return tuple(sorted(words)) or (name,)


def check_numbers(dataset: LabelledDataset, split: CaseSplit, labelled: Sequence[int]) -> None:
    """Raises InputError for numbers of labelled cases that the split does not have."""
    for number in labelled:
        if split.numbers and number not in split.numbers:
            raise InputError(
                f"{dataset.name}: {number} labelled cases, but the splits are of "
                f"{', '.join(map(str, split.numbers))}; give one of these with --labelled"
            )
        if not 1 <= number <= len(split.labelled):
            raise InputError(
                f"{dataset.name}: {number} labelled cases, but {len(split.labelled)} of {len(dataset.cases)} remain "
                f"beside {len(split.test)} test cases; give fewer with --labelled, or fewer test cases with --test"
            )


def _labels(root: Path) -> tuple[dict[int, str], int | None]:
    path = root / DESCRIPTION
    content = json.loads(path.read_text())
    try:
        # Datasets of the Medical Segmentation Decathlon have names by value.
        values = {
            (str(name) if str(key).isdigit() else str(key)): (int(key) if str(key).isdigit() else name)
            for key, name in content["labels"].items()
        }
    except (KeyError, AttributeError) as error:
        raise InputError(f"{path}: no labels ({error!r}); expected such as {{'background': 0, 'liver': 1}}") from error
    regions = [name for name, value in values.items() if not isinstance(value, int)]
    if regions:
        raise InputError(f"{path}: {', '.join(regions)} are regions of several values; the probe needs one value each")
    ignored = values.pop(IGNORE, None)
    labels = {value: name for name, value in sorted(values.items(), key=lambda item: item[1]) if value != 0}
    if not labels:
        raise InputError(f"{path}: no label but the background")
    return labels, ignored


def _label_files(root: Path) -> dict[str, Path]:
    content = json.loads((root / DESCRIPTION).read_text())
    if "dataset" in content:
        return {
            case: root / os.path.expandvars(entry["label"])
            for case, entry in content["dataset"].items()
            if "label" in entry
        }
    folder = root / LABELS
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {stem: path for path in files if (stem := volume_stem(path)) is not None}
