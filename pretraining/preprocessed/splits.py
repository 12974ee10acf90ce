"""Training and validation by patient, so that no patient is ever seen on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pretraining.collections.collection import DOMAINS, Patient
from pretraining.errors import InputError

TRAIN, VALIDATION = SPLITS = ("train", "validation")


def split_patients(patients: Sequence[Patient], validation_share: float, seed: int) -> dict[str, str]:
    """Assigns each patient, separately among paired, CT-only, MR-only and unregistered ones.

    Every group of two or more gives at least one patient to validation and keeps at least one for training.

    Returns:
        `train` or `validation` by patient identifier.

    Raises:
        InputError: when one side would be without CT or without MR, of those that the patients have.
    """
    groups: dict[tuple[bool, str], list[str]] = {}
    for patient in patients:
        groups.setdefault((patient.paired, "".join(sorted(patient.domains()))), []).append(patient.identifier)
    split: dict[str, str] = {}
    for _, identifiers in sorted(groups.items()):
        order = np.random.default_rng(seed).permutation(sorted(identifiers))
        count = round(validation_share * len(order))
        count = min(max(count, 1), len(order) - 1)
        for position, identifier in enumerate(order):
            split[str(identifier)] = VALIDATION if position < count else TRAIN
    there = {domain for patient in patients for domain in patient.domains()}
    on_sides = {(split[patient.identifier], domain) for patient in patients for domain in patient.domains()}
    for side in SPLITS:
        for domain in DOMAINS:
            if domain in there and (side, domain) not in on_sides:
                raise InputError(
                    f"too few patients with {domain} to keep some for validation ({side} would have none): at least "
                    "two paired patients are needed, or two with CT only and two with MR only"
                )
    return split
