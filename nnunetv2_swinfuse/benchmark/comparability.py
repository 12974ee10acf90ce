"""What may be compared: the same splits and files, all runs, final checkpoints, the same prediction and versions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_swinfuse.benchmark.arms import takes_weights
from nnunetv2_swinfuse.benchmark.cell_run import FINAL
from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.experiment import Experiment
from nnunetv2_swinfuse.benchmark.splits import FILE, key
from nnunetv2_swinfuse.errors import BenchmarkError

Results = Mapping[str, Mapping[str, Any]]
# Must be equal in two cells of the same run (seed, fold); the words describe a difference.
EQUAL = {
    "split_sha256": "other training or test cases",
    "labels_sha256": "other reference labels (SHA-256 of the files)",
    "images_sha256": "other test images (SHA-256 of the files)",
    "mirroring": "other test-time augmentation",
    "tolerance_mm": "another tolerance of the surface Dice",
    "length": "another length of training",
    "settings": "other settings of fine-tuning",
    "versions": "other versions",
}
# Must be equal in all cells of an arm on a dataset.
STEADY = {"plans_sha256": "plans", "arm": "settings of the arm", "versions": "versions"}


@dataclass(frozen=True)
class Refusal:
    """A comparison that is refused, and why."""

    first: str
    second: str
    dataset: str
    labels: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        where = f"{self.first} against {self.second} on {self.dataset}, {self.labels} labels"
        return f"{where}: not compared. {'; '.join(self.reasons)}."


def reasons_against(
    first: Sequence[Cell], second: Sequence[Cell], results: Results, experiment: Experiment, command: Sequence[str]
) -> tuple[str, ...]:
    """Why two arms may not be compared on a dataset with a number of labels; empty when they may.

    Args:
        first, second: the cells of either arm, in the same order of seeds and folds.
        results: what is known of finished cells, by name.
        experiment: says whether pretraining may have seen test cases.
        command: that resumes the experiment.
    """
    unfinished = [cell.name for cell in (*first, *second) if cell.name not in results]
    if unfinished:
        more = f" and {len(unfinished) - 1} others" if len(unfinished) > 1 else ""
        return (f"{unfinished[0]}{more} not finished; finish with: {shlex.join([*command, '--cell', unfinished[0]])}",)
    reasons: list[str] = []
    for arm in (first, second):
        known = [results[cell.name] for cell in arm]
        reasons += _of_an_arm(arm[0].arm, known, experiment)
    for one, other in zip(first, second, strict=True):
        a, b = results[one.name], results[other.name]
        for name, words in EQUAL.items():
            if a.get(name) != b.get(name):
                reasons.append(
                    f"seed {one.seed}, fold {one.fold}: {words} ({_short(a.get(name))}, {_short(b.get(name))})"
                )
    return tuple(dict.fromkeys(reasons))


def _of_an_arm(arm: str, known: Sequence[Mapping[str, Any]], experiment: Experiment) -> list[str]:
    reasons = []
    for result in known:
        if result.get("checkpoint") != FINAL:
            reasons.append(
                f"{arm}: evaluated {result.get('checkpoint')}, expected {FINAL}: a best epoch is chosen on test cases"
            )
    for name, words in STEADY.items():
        different = {json.dumps(result.get(name), sort_keys=True) for result in known}
        if len(different) > 1:
            machines = " and ".join(sorted({str(result.get("machine")) for result in known}))
            values = ", ".join(sorted(map(_short, different)))
            reasons.append(f"{arm}: its runs have different {words} ({values}; made on {machines})")
    encoders = [result.get("encoder") or {} for result in known]
    per_seed = experiment.pretraining is not None and experiment.pretraining.per_seed
    by_seed: dict[Any, set[Any]] = {}
    for encoder in encoders:
        by_seed.setdefault(encoder.get("seed") if per_seed else None, set()).add(encoder.get("sha256"))
    if any(len(digests) > 1 for digests in by_seed.values()):
        reasons.append(f"{arm}: its runs began with different encoders")
    seen = sorted({case for encoder in encoders for case in encoder.get("saw") or ()})
    if seen and takes_weights(str(known[0].get("arm", {}).get("trainer"))) and not experiment.transductive:
        reasons.append(
            f"{arm}: its pretraining saw {len(seen)} test cases ({', '.join(seen[:3])}...). Pretrain on others, or say "
            'so in the experiment: "transductive": true'
        )
    return reasons


def check_rows(rows: pd.DataFrame, cells: Iterable[Cell], splits: Path) -> None:
    """Every finished cell has a value of every test case of its split, and of no other.

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
            wanted = set(stored[cell.dataset][key(cell.labels, cell.seed, cell.fold)]["val"])
        except KeyError as error:
            raise BenchmarkError(f"{path}: no split of {cell.name}") from error
        if cases[cell.name] != wanted:
            differing = sorted(cases[cell.name] ^ wanted)
            raise BenchmarkError(
                f"{cell.name}: the table has {len(cases[cell.name])} cases, its split in {path} {len(wanted)}; "
                f"differing: {', '.join(differing[:5])}"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = text.strip('"')
    return f"{text[:8]}..." if len(text) == 64 else text[:120]
