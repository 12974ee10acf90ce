"""The output of `swinfuse_pretrain --list`: one collection in detail, or all collections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import Grid
from pretraining.collections.collection import Collection
from pretraining.collections.modalities import ModalityMap
from pretraining.collections.resolve import find_collection, search_roots


def describe(collection: Collection, grids: Mapping[Path, Grid]) -> str:
    """Numbers of patients and pairs, and for each modality the number, spacings and sizes of its volumes.

    Args:
        collection: the volumes.
        grids: grid of each file, from :func:`check`.
    """
    rows = [("modality", "domain", "volumes", "masks", "spacing, mm (z y x)", "size (z y x)")]
    kinds = sorted({(volume.domain, volume.modality) for volume in collection.volumes})
    for domain, modality in kinds:
        volumes = [v for v in collection.volumes if (v.domain, v.modality) == (domain, modality)]
        spacings = np.array([grids[volume.path].spacing[::-1] for volume in volumes])
        sizes = np.array([grids[volume.path].size[::-1] for volume in volumes])
        masks = sum(volume.mask is not None for volume in volumes)
        rows.append(
            (modality, domain, str(len(volumes)), str(masks), _range(spacings, "{:.3g}"), _range(sizes, "{:.0f}"))
        )
    return "\n".join([collection.summary(), *_columns(rows)])


def describe_all(raw_root: Path, modalities: ModalityMap) -> str:
    """One line for each folder: its contents, or why it cannot be used. Headers are not read."""
    rows = [("name", "layout", "patients", "pairs", "CT", "MR", "")]
    for root in search_roots(raw_root):
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            try:
                collection = find_collection(folder.name, root, modalities=modalities)
            except InputError as error:
                rows.append((folder.name, "-", "-", "-", "-", "-", str(error).split("\n")[0]))
                continue
            domains = [volume.domain for volume in collection.volumes]
            rows.append(
                (
                    collection.name, collection.layout, str(len(collection.patients)),
                    str(sum(patient.paired for patient in collection.patients)),
                    str(domains.count("CT")), str(domains.count("MR")), "",
                )
            )  # fmt: skip
    if len(rows) == 1:
        return f"{raw_root}: no folders. swinfuse_demo --data_only writes a collection 'SynthRAD' there"
    return "\n".join([f"In {' and '.join(str(root) for root in search_roots(raw_root))}:", *_columns(rows)])


def _range(values: np.ndarray, form: str) -> str:
    """Median of each axis, with minimum and maximum where they differ: `2.5 (2-3) x 1 x 1`."""
    axes = []
    for low, middle, high in zip(values.min(0), np.median(values, 0), values.max(0), strict=True):
        ends = form.format(low), form.format(high)
        axes.append(form.format(middle) + (f" ({ends[0]}-{ends[1]})" if ends[0] != ends[1] else ""))
    return " x ".join(axes)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  " + "  ".join([*(word.ljust(width) for word, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]
