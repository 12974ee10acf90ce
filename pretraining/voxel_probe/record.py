"""The record beside a table of the voxel probe: what its rows were computed from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.errors import InputError
from pretraining.voxel_probe.comparison import LabelledCases, labelled_sets
from pretraining.voxel_probe.encoders import RANDOM
from pretraining.voxel_probe.probe import Plan
from pretraining.voxel_probe.results import Row
from pretraining.voxel_probe.sources import Source


def write_record(
    options: argparse.Namespace,
    plan: Plan,
    sources: Sequence[Source],
    floors: Mapping[str, str],
    seconds: Mapping[str, float],
) -> None:
    """Writes splits, arms, settings and versions; splits of earlier calls stay in it.

    Raises:
        InputError: when the record of an earlier call is damaged.
    """
    cases = {
        task.fitted.number: {
            "labelled": [case.name for case in plan.splits[task.fitted.name].labelled],
            "test": [case.name for case in plan.splits[task.fitted.name].test],
        }
        for task in plan.tasks
    }
    splits = _read(options.output).get("splits", {})
    key = str(plan.seed)
    record = {
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in sorted(vars(options).items())},
        "splits": {**splits, key: {**splits.get(key, {}), **cases}},
        "arms": [
            {"arm": s.name, "seed": s.seed, "features": s.description, "normalisation": asdict(s.normalisation)}
            for s in sources
        ],
        "floors": floors,
        "seconds": seconds,
        "versions": {name: version(name) for name in ("nnunetv2-swinfuse", "nnunetv2", "torch")},
    }
    with atomic_write(_path(options.output)) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def read_floors(table: Path, arms: Iterable[str]) -> dict[str, str]:
    """The arm of random encoders that each arm is compared with.

    `random` where the record does not say: it has the arms of the probe's last call.

    Raises:
        InputError: for a damaged record.
    """
    known = _read(table).get("floors", {})
    return {arm: known.get(arm, RANDOM) for arm in arms}


def read_labelled(table: Path, rows: Iterable[Row]) -> LabelledCases:
    """The cases that rows were fitted on, where the record says so; records of earlier versions do not.

    Raises:
        InputError: for a damaged record.
    """
    splits = _read(table).get("splits", {})
    return labelled_sets(rows, lambda number, split: splits.get(str(split), {}).get(number, {}).get("labelled"))


def _path(table: Path) -> Path:
    return table.with_suffix(".json")


def _read(table: Path) -> dict[str, Any]:
    """The record of a table; empty where there is none."""
    path = _path(table)
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
        if not (isinstance(record, dict) and all(isinstance(record.get(k, {}), dict) for k in ("floors", "splits"))):
            raise ValueError("expected a mapping with floors and splits")
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); probe the runs again, or remove it") from error
    return record
