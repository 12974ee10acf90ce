"""Which cases are labelled and which are tested: drawn once for a dataset, nested, the same for all arms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.benchmark.experiment import Experiment, Labels
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.statistics import independent_groups

FILE = "splits.json"


@dataclass(frozen=True)
class Split:
    """Training and test cases of one run, sorted."""

    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps([self.train, self.test]).encode()).hexdigest()

    def for_nnunet(self) -> dict[str, list[str]]:
        """An entry of nnU-Net's splits_final.json; `val` is what it predicts and evaluates after training."""
        return {"train": list(self.train), "val": list(self.test)}


def key(labels: Labels | str, seed: int, fold: int) -> str:
    """The key of a split in the file."""
    return f"{labels}_labels__seed_{seed}__fold_{fold}"


def draw_splits(experiment: Experiment, dataset: str, cases: Sequence[str]) -> dict[str, Split]:
    """All splits of a dataset, by :func:`key`.

    The order in which cases are drawn is that of the SHA-256 of seed and name: it depends on no generator's version,
    and the first 5 of a seed are among its first 10.

    Args:
        experiment: says how many labels, which seeds, and folds or test cases.
        dataset: its name, for messages.
        cases: names of all labelled cases.

    Raises:
        BenchmarkError: when there are fewer cases than the experiment asks for.
    """
    names = sorted(cases)
    pools = _folds(experiment, dataset, names) if experiment.folds else {0: _held_out(experiment, dataset, names)}
    drawn = {}
    for fold, (pool, test) in pools.items():
        for labels in experiment.labels:
            count = len(pool) if labels == "all" else labels
            if count > len(pool):
                raise BenchmarkError(
                    f"{dataset}: {count} labelled cases asked for, but {len(pool)} of its {len(names)} are left for "
                    f"training beside {len(test)} test cases. Ask for fewer labels or fewer test cases"
                )
            for seed in experiment.seeds:
                chosen = shuffled(pool, f"seed {seed}")[:count]
                drawn[key(labels, seed, fold)] = Split(tuple(sorted(chosen)), tuple(test))
    return drawn


def shuffled(cases: Sequence[str], salt: str) -> list[str]:
    """The cases in an order that depends on their names and the salt only."""
    return sorted(cases, key=lambda case: hashlib.sha256(f"{salt}: {case}".encode()).hexdigest())


def _held_out(experiment: Experiment, dataset: str, names: list[str]) -> tuple[list[str], list[str]]:
    wanted = experiment.test_cases
    if isinstance(wanted, tuple):
        unknown = sorted(set(wanted) - set(names))
        if unknown:
            raise BenchmarkError(f"{dataset}: test_cases {', '.join(unknown[:5])} are not among its cases")
        test = sorted(wanted)
    else:
        assert wanted is not None
        if wanted >= len(names):
            raise BenchmarkError(f"{dataset}: {wanted} test cases asked for, but it has {len(names)} labelled cases")
        test = sorted(shuffled(names, "test")[:wanted])
    return [name for name in names if name not in set(test)], test


def _folds(experiment: Experiment, dataset: str, names: list[str]) -> dict[int, tuple[list[str], list[str]]]:
    # scikit-learn takes seconds to import.
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if len(names) < 10:
        raise BenchmarkError(f"{dataset}: {len(names)} cases; five folds with 2 test cases each need 10")
    splits = generate_crossval_split(names, seed=12345, n_splits=5)
    return {
        fold: ([str(case) for case in splits[fold]["train"]], sorted(str(case) for case in splits[fold]["val"]))
        for fold in experiment.folds
    }


def labelled_sets(
    splits: Mapping[str, Split], labels: Labels | str, seeds: Sequence[int], folds: Sequence[int]
) -> dict[int, tuple[tuple[str, ...], ...]]:
    """The labelled cases of each seed, in each fold.

    Args:
        splits: of a dataset, by :func:`key`.
        labels, seeds, folds: of which splits.
    """
    return {seed: tuple(splits[key(labels, seed, fold)].train for fold in folds) for seed in seeds}


def read_splits(folder: Path) -> dict[str, dict[str, Split]]:
    """The splits in a results folder, by dataset and :func:`key`."""
    stored = json.loads((folder / FILE).read_text())
    return {
        dataset: {name: Split(tuple(entry["train"]), tuple(entry["val"])) for name, entry in drawn.items()}
        for dataset, drawn in stored.items()
    }


def repeated_draws(experiment: Experiment, splits: Mapping[str, Mapping[str, Split]]) -> list[str]:
    """A sentence for each group of seeds that drew the same labelled cases while others drew others.

    Args:
        experiment: says how many labels and which seeds.
        splits: by dataset and :func:`key`.
    """
    sentences = []
    for dataset, drawn in splits.items():
        for labels in experiment.labels:
            groups = independent_groups(labelled_sets(drawn, labels, experiment.seeds, experiment.trained_folds))
            sentences += [
                f"{dataset}, {labels} labels: seeds {', '.join(map(str, group))} drew the same labelled cases and are "
                "one run"
                for group in groups
                if len(group) > 1
            ]
    return sentences


def store_splits(folder: Path, splits: Mapping[str, Mapping[str, Split]]) -> None:
    """Adds splits to `splits.json`; those already in it stay.

    Raises:
        BenchmarkError: when a split in the file is another one than that drawn now.
    """
    path = folder / FILE
    stored: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    for dataset, drawn in splits.items():
        known = stored.setdefault(dataset, {})
        for name, split in drawn.items():
            content = split.for_nnunet()
            if known.setdefault(name, content) != content:
                raise BenchmarkError(
                    f"{path}: {dataset}, {name} is another split than the one drawn now: the dataset's cases or the "
                    "experiment's test cases changed. Use another results folder, or restore the dataset"
                )
    write_json(path, stored)
