"""`python -m pretraining.voxel_probe`: what frozen features know of organs, next to random encoders and controls."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nnunetv2_swinfuse.architecture.topology import triple
from nnunetv2_swinfuse.errors import InputError, errors_without_traceback
from nnunetv2_swinfuse.nnunet_names import PREPROCESSED, RAW
from pretraining.collections.modalities import ModalityMap
from pretraining.nnunet_paths import required_paths
from pretraining.preset_files import preset_names, recipe_names
from pretraining.voxel_probe.comparison import LabelledCases, compare_arms, labelled_sets
from pretraining.voxel_probe.datasets import (
    CaseSplit,
    LabelledDataset,
    check_numbers,
    find_dataset,
    split_cases,
    stored_split,
)
from pretraining.voxel_probe.encoders import XAVIER
from pretraining.voxel_probe.probe import Plan, Task, run_arm
from pretraining.voxel_probe.record import write_record
from pretraining.voxel_probe.results import Results, Row, format_table
from pretraining.voxel_probe.sources import CONTROLS, make_arm, make_sources

LABELLED = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 on bad input."""
    options = build_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    with errors_without_traceback("voxel_probe"):
        run(options)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all options and their help."""
    parser = argparse.ArgumentParser(
        prog="python -m pretraining.voxel_probe",
        description="Fit a linear layer on the frozen features of voxels to organ labels, and measure it on other "
        "cases. Explained in docs/probing.md.",
    )  # fmt: skip
    parser.add_argument(
        "encoders", nargs="*", metavar="[NAME=]PATH",
        help="folder of a run, checkpoint or encoder file; runs with the same NAME are seeds of one arm",
    )  # fmt: skip
    parser.add_argument(
        "-d", "--datasets", nargs="+", required=True, help="labelled datasets in nnUNet_raw, such as 501"
    )
    parser.add_argument(
        "--labelled", nargs="+", type=int, metavar="N",
        help=f"numbers of labelled cases to fit on; default: {LABELLED} and all but the test cases",
    )  # fmt: skip
    parser.add_argument(
        "--test_on", nargs="+", action="extend", default=[], metavar="DATASET",
        help="zero-shot: also measure on the test cases of these datasets, for the labels in common",
    )  # fmt: skip
    parser.add_argument("--test", type=int, metavar="N", help="test cases; default: half of the cases, at most 40")
    parser.add_argument("--split_seed", type=int, default=0, help="seed of the split of the cases; default 0")
    parser.add_argument(
        "--splits", type=Path, metavar="FILE",
        help="splits.json of swinfuse_benchmark: fit on and test the cases that it fine-tunes on with --split_seed",
    )  # fmt: skip
    parser.add_argument(
        "--controls", nargs="*", choices=CONTROLS, default=list(CONTROLS[:-1]),
        help=f"arms without training; default: all but {XAVIER}, random encoders with larger weights",
    )  # fmt: skip
    parser.add_argument("--random_seeds", type=int, default=3, metavar="N", help="number of random encoders; default 3")
    parser.add_argument("-p", "--preset", choices=preset_names(), help="random encoders of a preset, without a run")
    parser.add_argument("--recipe", choices=recipe_names(), default="swinfuse", help="recipe of these random encoders")
    parser.add_argument(
        "--collection", metavar="NAME",
        help="preprocessed collection whose spacing and normalisation is used; default: that of each encoder",
    )  # fmt: skip
    parser.add_argument(
        "--spacing", nargs=3, type=float, metavar=("Z", "Y", "X"), help="spacing in mm, instead of the collection's"
    )
    parser.add_argument(
        "--crop", nargs=3, type=int, default=[96, 96, 96], metavar=("Z", "Y", "X"),
        help="largest part of an image that is used, in voxels; default 96 96 96",
    )  # fmt: skip
    parser.add_argument("--channel", type=int, default=0, help="channel of cases with several; default 0")
    parser.add_argument(
        "--modality", nargs="+", action="extend", default=[], metavar="NAME=CT|MR", help="modality of other names"
    )
    parser.add_argument("--output", type=Path, default=Path("voxel_probe.csv"), help="rows; default voxel_probe.csv")
    parser.add_argument("--overwrite", action="store_true", help="compute the rows of these arms again")
    parser.add_argument(
        "--compare", nargs=2, action="append", default=[], metavar=("FIRST", "SECOND"),
        help="print the difference between two arms, with an interval that covers seeds and cases; may be repeated",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default 1")
    return parser


def run(options: argparse.Namespace) -> None:
    """Computes what is missing, writes the rows and prints the tables.

    Raises:
        InputError: for datasets, encoders or options that cannot be used.
    """
    raw, preprocessed = required_paths(RAW, PREPROCESSED)
    plan = make_plan(options, raw)
    sources, floors = make_sources(options, preprocessed)
    results = Results(options.output)
    names = {source.name for source in sources}
    check_compared(options.compare, names | {row.key.arm for row in results.rows})
    divisor = triple(np.lcm.reduce([(1, 1, 1), *(source.divisor for source in sources)]).tolist())
    seconds: dict[str, float] = {}
    for source in sources:
        started = time.perf_counter()
        run_arm(make_arm(source, divisor, options, preprocessed), plan, results, options.overwrite)
        seconds[f"{source.name}, seed {source.seed}"] = round(time.perf_counter() - started, 1)
    if sources:
        write_record(options, plan, sources, floors, seconds)
    fitted = {task.fitted.number for task in plan.tasks}
    rows = [row for row in results.rows if row.key.dataset in fitted]
    shown = [row for row in rows if row.key.arm in names]
    tables = [format_table(shown, floors, zero_shot) for zero_shot in (False, True)]
    print("\n\n".join(table for table in tables if table))
    labelled = labelled_cases(options, plan, rows) if options.compare else {}
    for first, second in options.compare:
        print(f"\n{compare_arms(rows, first, second, labelled)}")
    print(f"\n{options.output}: {len(results.rows)} rows; {sum(seconds.values()):.0f} s")


def check_compared(pairs: Sequence[Sequence[str]], arms: set[str]) -> None:
    """Raises InputError for pairs of `--compare` with an arm that is neither measured now nor has rows."""
    for name in (name for pair in pairs for name in pair):
        if name not in arms:
            raise InputError(f"--compare: no arm is called {name}; there are {', '.join(sorted(arms)) or 'none'}")


def labelled_cases(options: argparse.Namespace, plan: Plan, rows: Sequence[Row]) -> LabelledCases:
    """The cases that were fitted on, by dataset and number of them, and by split, for all splits in the rows."""
    datasets = {task.fitted.number: task.fitted for task in plan.tasks}
    return labelled_sets(
        rows, lambda number, split: [case.name for case in draw_split(options, datasets[number], split).labelled]
    )


def draw_split(options: argparse.Namespace, dataset: LabelledDataset, seed: int) -> CaseSplit:
    """The cases of a split; raises InputError for what the dataset or the file of splits does not have."""
    if options.splits:
        return stored_split(dataset, options.splits, seed)
    return split_cases(dataset, seed, options.test)


def make_plan(options: argparse.Namespace, raw_root: Path) -> Plan:
    """Reads the datasets and splits their cases; raises InputError for what they do not have."""
    modalities = ModalityMap.from_words(options.modality)
    names = list(dict.fromkeys([*options.datasets, *options.test_on]))
    datasets = {name: find_dataset(name, raw_root, modalities, options.channel) for name in names}
    if options.splits and options.test:
        raise InputError("--test: with --splits the test cases are those in the file; leave one of the two out")
    splits = {dataset.name: draw_split(options, dataset, options.split_seed) for dataset in datasets.values()}
    tasks, labelled = [], {}
    for name in options.datasets:
        dataset = datasets[name]
        available = len(splits[dataset.name].labelled)
        numbers = options.labelled or splits[dataset.name].numbers or sorted({min(LABELLED, available), available})
        check_numbers(dataset, splits[dataset.name], numbers)
        labelled[dataset.name] = tuple(sorted(set(numbers)))
        others = [datasets[other] for other in options.test_on if datasets[other].name != dataset.name]
        tasks += [Task(dataset, tested) for tested in (dataset, *others)]
    for task in tasks:
        # Raises an error for datasets without a label in common.
        _ = task.labels
    return Plan(tuple(tasks), splits, labelled, options.split_seed)
