"""Decides which arms may be compared.

Requires the same splits, files, prediction settings and versions, all runs finished, and final checkpoints.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_swinfuse.benchmark.arms import SWINFUSE, takes_weights
from nnunetv2_swinfuse.benchmark.cell_run import FINAL
from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.experiment import AS_STORED, Experiment
from nnunetv2_swinfuse.benchmark.splits import FILE, key
from nnunetv2_swinfuse.errors import BenchmarkError

Results = Mapping[str, Mapping[str, Any]]
# Must be equal in two cells of the same run (seed, fold). Value: how a difference is described.
EQUAL_BETWEEN_ARMS = {
    "split_sha256": "different training or test cases",
    "training_sha256": "different training images or labels (SHA-256 of the files)",
    "labels_sha256": "different reference labels (SHA-256 of the files)",
    "images_sha256": "different test images (SHA-256 of the files)",
    "mirroring": "different test-time augmentation",
    "mirrored_training": "different augmentation",
    "orientation": "different orientations of the images",
    "tolerance_mm": "different tolerances of the surface Dice",
    "length": "different lengths of training",
    "settings": "different settings of fine-tuning",
    "versions": "different versions",
}
# The same, of two arms with a SwinFUSE network; None is a residual backbone, which has no such width of its own.
EQUAL_BETWEEN_SWINFUSE_ARMS = {"stem_features": "different widths at full resolution"}
# Values of entries that the records of earlier versions do not have.
BEFORE_ENTRY_EXISTED = {
    "mirrored_training": True, "orientation": AS_STORED, "stem_features": "half the feature size",
}  # fmt: skip
# Where a record has no value, these are not compared.
NOT_COMPARED_IF_NONE = ("training_sha256", "stem_features")
# Must be as the experiment says.
OF_EXPERIMENT = (
    "configuration", "spacing", "orientation", "length", "device", "mirroring", "mirrored_training", "plans",
    "settings", "tolerance_mm",
)  # fmt: skip
# Must be equal in all cells of an arm on a dataset. Value: how the entry is described.
EQUAL_WITHIN_ARM = {
    "plans_sha256": "plans", "arm": "settings of the arm", "versions": "versions",
    "stem_features": "widths at full resolution",
}  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """A comparison that is refused, and why.

    Attributes:
        first, second: names of the arms.
        dataset: name of the dataset.
        labels: number of labelled training cases, or `all`.
        reasons: one or more sentences without a full stop.
    """

    first: str
    second: str
    dataset: str
    labels: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        comparison = f"{self.first} against {self.second} on {self.dataset}, {self.labels} labels"
        return f"{comparison}: not compared. {'; '.join(self.reasons)}."


def reasons_against(
    first: Sequence[Cell], second: Sequence[Cell], results: Results, experiment: Experiment, command: Sequence[str]
) -> tuple[str, ...]:
    """Reasons not to compare two arms on a dataset at a given number of labels; empty if there are none.

    Args:
        first, second: the cells of either arm, in the same order of seeds and folds.
        results: contents of result.json of every finished cell, by the name of the cell.
        experiment: the experiment, which declares whether pretraining may have seen test cases.
        command: command line that resumes the experiment, for the message.
    """
    unfinished = [cell.name for cell in (*first, *second) if cell.name not in results]
    if unfinished:
        others = len(unfinished) - 1
        more = f" and {others} other cell{'s' * (others > 1)} are" if others else " is"
        return (f"{unfinished[0]}{more} not finished; run: {shlex.join([*command, '--cell', unfinished[0]])}",)
    reasons: list[str] = []
    for arm in (first, second):
        known = [results[cell.name] for cell in arm]
        reasons += _reasons_within_arm(arm[0].arm, known, experiment)
    for one, other in zip(first, second, strict=True):
        a, b = results[one.name], results[other.name]
        networks = all(str(result.get("arm", {}).get("trainer")).startswith(SWINFUSE) for result in (a, b))
        for name, description in (EQUAL_BETWEEN_ARMS | (EQUAL_BETWEEN_SWINFUSE_ARMS if networks else {})).items():
            values = [result.get(name, BEFORE_ENTRY_EXISTED.get(name)) for result in (a, b)]
            if name in NOT_COMPARED_IF_NONE and None in values:
                continue
            if values[0] != values[1]:
                reasons.append(
                    f"seed {one.seed}, fold {one.fold}: {description} ({_short(values[0])}, {_short(values[1])})"
                )
    # Without repetitions, in order.
    return tuple(dict.fromkeys(reasons))


def check_records(experiment: Experiment, cells: Iterable[Cell], results: Results) -> None:
    """Checks that finished cells are those of this experiment, not of another one with cells of the same names.

    experiment.json tells what the last session was; a folder of cells may be older, or be used with other results, and
    an arm may have been another one before it was left out for a session.

    Raises:
        BenchmarkError: naming a cell and what differs.
    """
    now = experiment.to_dict()
    before = {**now, **BEFORE_ENTRY_EXISTED}
    arms = {arm["name"]: {**arm, "encoder": Path(arm["encoder"]).name} for arm in now["arms"]}
    for cell in cells:
        record = results.get(cell.name)
        if record is None:
            continue
        # Entries that a record does not have were not written by the version that made it.
        different = [name for name in OF_EXPERIMENT if record.get(name, before[name]) != now[name]]
        arm, recorded = arms[cell.arm], {"pretraining": {}, **record.get("arm", {})}
        different += [f"{name} of the arm" for name, value in recorded.items() if arm.get(name, value) != value]
        if different:
            raise BenchmarkError(
                f"{cell.name} is done, but of an experiment that differs in {', '.join(different)}. Use another "
                "name, or other folders (-o, --results)"
            )


def _reasons_within_arm(arm: str, known: Sequence[Mapping[str, Any]], experiment: Experiment) -> list[str]:
    reasons = []
    for result in known:
        if result.get("checkpoint") != FINAL:
            reasons.append(
                f"{arm}: evaluated {result.get('checkpoint')}, expected {FINAL}: the best epoch would have been "
                "selected on the test cases"
            )
    for name, description in EQUAL_WITHIN_ARM.items():
        different = {json.dumps(result.get(name), sort_keys=True) for result in known}
        if len(different) > 1:
            machines = " and ".join(sorted({str(result.get("machine")) for result in known}))
            values = ", ".join(sorted(map(_short, different)))
            reasons.append(f"{arm}: its runs have different {description} ({values}; run on {machines})")
    encoders = [result.get("encoder") or {} for result in known]
    per_seed = experiment.pretraining is not None and experiment.pretraining.per_seed
    by_seed: dict[Any, set[Any]] = {}
    for encoder in encoders:
        by_seed.setdefault(encoder.get("seed") if per_seed else None, set()).add(encoder.get("sha256"))
    pretrained = takes_weights(str(known[0].get("arm", {}).get("trainer")))
    if pretrained and any(len(digests) > 1 for digests in by_seed.values()):
        reasons.append(f"{arm}: its runs started from different encoders")
    # Records of earlier versions, and encoders from a file, have no such entry.
    digests = {encoder.get("learning_settings_sha256") for encoder in encoders} - {None}
    if pretrained and len(digests) > 1:
        reasons.append(
            f"{arm}: its encoders were pretrained with different settings ({', '.join(sorted(map(_short, digests)))}), "
            "such as a recipe that has changed; 'learning_settings' in their encoder.json says which"
        )
    seen_cases = sorted({case for encoder in encoders for case in encoder.get("saw") or ()})
    if seen_cases and pretrained and not experiment.transductive:
        reasons.append(
            f"{arm}: its pretraining saw {len(seen_cases)} test cases ({', '.join(seen_cases[:3])}...). Pretrain on "
            'other cases, or declare it in the experiment: "transductive": true'
        )
    return reasons


def check_rows(rows: pd.DataFrame, cells: Iterable[Cell], splits: Path) -> None:
    """Checks that every finished cell has a value of every test case of its split, and of no other.

    Raises:
        BenchmarkError: naming the cell and the cases.
    """
    path = splits / FILE
    if not path.is_file():
        raise BenchmarkError(f"{path}: missing; it is kept and committed with the per-case table")
    stored = json.loads(path.read_text())
    cases = rows.groupby("cell", observed=True)["case"].agg(set)
    for cell in cells:
        if cell.name not in cases.index:
            continue
        try:
            expected_cases = set(stored[cell.dataset][key(cell.labels, cell.seed, cell.fold)]["val"])
        except KeyError as error:
            raise BenchmarkError(f"{path}: no split of {cell.name}") from error
        if cases[cell.name] != expected_cases:
            differing = sorted(cases[cell.name] ^ expected_cases)
            raise BenchmarkError(
                f"{cell.name}: the table has {len(cases[cell.name])} cases, its split in {path} {len(expected_cases)}; "
                f"differing: {', '.join(differing[:5])}"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = text.strip('"')
    return f"{text[:8]}..." if len(text) == 64 else text[:120]
