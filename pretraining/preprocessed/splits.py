"""Splits a collection into training and validation by patient, so that no patient is in both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import DOMAINS, Patient

TRAIN, VALIDATION = SPLITS = ("train", "validation")


def split_patients(patients: Sequence[Patient], validation_share: float, seed: int) -> dict[str, str]:
    """Draws the split, stratified by paired, CT-only, MR-only and unregistered patients.

    Every group of two or more patients has at least one in validation and one in training.

    Args:
        patients: patients of the collection.
        validation_share: share of each group that is drawn for validation.
        seed: seed of the draw.

    Returns:
        `train` or `validation` by patient identifier.

    Raises:
        InputError: when training or validation would have no CT or no MR although the collection has some.
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
    domains = {domain for patient in patients for domain in patient.domains()}
    covered = {(split[patient.identifier], domain) for patient in patients for domain in patient.domains()}
    for name in SPLITS:
        for domain in DOMAINS:
            if domain in domains and (name, domain) not in covered:
                raise InputError(
                    f"too few patients with {domain} to keep some for validation ({name} would have none): at least "
                    "two paired patients are needed, or two with CT only and two with MR only"
                )
    return split
