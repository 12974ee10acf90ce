"""Models of an experiment on the test cases of its other datasets, such as those trained on MR on CT.

    python -m nnunetv2_swinfuse.benchmark.unseen_modality EXPERIMENT.json -o FOLDER --compare swinfuse scratch

The models are those that `swinfuse_benchmark` has trained in FOLDER; no case of the other dataset was labelled for
them. Images are brought to the orientation of the training images, which nnU-Net would not do; classes are matched by
name. `unseen.csv` in the results folder is a per-case table like the benchmark's, whose `dataset` names both datasets;
rows that exist are kept, so the command can be interrupted, and repeated as cells are added.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from tqdm import tqdm

from nnunetv2_swinfuse.benchmark.analysis import pair_scores
from nnunetv2_swinfuse.benchmark.cell_run import FINAL, CellRun
from nnunetv2_swinfuse.benchmark.cells import Cell, Workspace, read_results
from nnunetv2_swinfuse.benchmark.commands import base_environment
from nnunetv2_swinfuse.benchmark.comparability import check_records, reasons_against
from nnunetv2_swinfuse.benchmark.comparison import compare
from nnunetv2_swinfuse.benchmark.experiment import Device, Experiment, load_experiment
from nnunetv2_swinfuse.benchmark.options import output_folder, resume_command
from nnunetv2_swinfuse.benchmark.other_dataset import common_classes, dice_of_case, load_model, model_orientation
from nnunetv2_swinfuse.benchmark.raw_dataset import Dataset
from nnunetv2_swinfuse.benchmark.runner import Runner
from nnunetv2_swinfuse.benchmark.scores import Scores, case_scores
from nnunetv2_swinfuse.benchmark.splits import key, store_splits
from nnunetv2_swinfuse.benchmark.table import rows_frame
from nnunetv2_swinfuse.benchmark.tables import TRANSDUCTIVE
from nnunetv2_swinfuse.benchmark.unseen_table import (
    METRIC,
    SEPARATOR,
    TABLE,
    add_rows,
    both_datasets,
    read_rows,
    rows_of_experiment,
)
from nnunetv2_swinfuse.errors import BenchmarkError, errors_without_traceback
from nnunetv2_swinfuse.nnunet_names import EXTERNAL_TRAINERS
from pretraining.markdown import markdown_table


def rows_of_cell(
    run: CellRun, tested: Dataset, cases: Sequence[str], device: str, rescale: bool, bar: tqdm[Any]
) -> pd.DataFrame:
    """Rows of one cell's model on the test cases of another dataset."""
    labels = tested.content["labels"]
    classes = common_classes(run.dataset.content["labels"], labels)
    predictor = load_model(run, device)
    code = model_orientation(predictor, [run.dataset.images[case][0] for case in run.split.train])
    both = both_datasets(run.dataset.name, tested.name, rescale)
    of_cell = {"cell": run.cell.name, **asdict(run.cell), "dataset": both}
    channels = tested.channel_names if rescale else None
    rows = []
    for case in cases:
        files = tested.images[case], tested.label[case]
        measured = dice_of_case(predictor, *files, code, classes, labels.get("ignore"), channels)
        rows += [{**of_cell, "case": case, "metric": METRIC, **row} for row in measured]
        bar.update()
    return rows_frame(rows)


def pairs_to_test(runner: Runner, finished: Mapping[str, Any]) -> list[tuple[Cell, Dataset]]:
    """Finished cells, and the other datasets that share a class and the number of channels with theirs."""
    datasets = runner.datasets.values()
    labels = {dataset.name: dataset.content["labels"] for dataset in datasets}
    channels = {dataset.name: len(next(iter(dataset.images.values()))) for dataset in datasets}
    others = {
        name: [
            tested
            for tested in datasets
            if tested.name != name
            and channels[tested.name] == channels[name]
            and common_classes(labels[name], labels[tested.name])
        ]
        for name in labels
    }
    return [(cell, tested) for cell in runner.cells if cell.name in finished for tested in others[cell.dataset]]


def groups(table: pd.DataFrame) -> list[tuple[str, str, list[str]]]:
    """Datasets, number of labels, and the arms with rows."""
    by_group = table.groupby(["dataset", "labels"], sort=True)
    return [(str(dataset), str(labels), sorted(rows["arm"].unique())) for (dataset, labels), rows in by_group]


def format_means(table: pd.DataFrame) -> str:
    """A Markdown table of the mean Dice of each arm, with that of each run that has all folds of the others."""
    lines = []
    for dataset, labels, arms in groups(table):
        for arm in arms:
            of_arm = table[(table["dataset"] == dataset) & (table["labels"] == labels) & (table["arm"] == arm)]
            folds = of_arm.groupby("seed")["fold"].agg(set)
            complete = folds[folds == set(of_arm["fold"])].index
            if not len(complete):
                lines.append([*dataset.split(SEPARATOR), labels, arm, "-", "no seed has all folds"])
                continue
            runs = case_scores(of_arm[of_arm["seed"].isin(complete)], dataset, labels, METRIC, [arm]).run_means(arm)
            of_runs = ", ".join(f"{run:.3f}" for run in runs)
            lines.append([*dataset.split(SEPARATOR), labels, arm, f"{runs.mean():.3f}", of_runs])
    return markdown_table(["trained on", "tested on", "labels", "arm", METRIC, "of each run"], lines)


def format_comparisons(
    table: pd.DataFrame,
    pairs: Sequence[Sequence[str]],
    runner: Runner,
    results: Mapping[str, dict[str, Any]],
    command: Sequence[str],
) -> str:
    """A Markdown table of differences with 95 % intervals that cover runs and cases, and what is not compared, and why.

    Verdicts are those of the benchmark, with Holm's correction over the pairs given, on all datasets and numbers of
    labels of the experiment, also those that cannot be compared yet.

    Args:
        table: of the models that were tested.
        pairs: of arms.
        runner, results: the experiment and the records of its finished cells.
        command: that resumes the experiment, for cells that are not finished.
    """
    possible = pairs_to_test(runner, {cell.name: None for cell in runner.cells})
    declared = len(pairs) * len({(cell.dataset, tested.name, cell.labels) for cell, tested in possible})
    family: list[tuple[Scores, str, str]] = []
    refused = []
    for dataset, labels, _ in groups(table):
        cells = [c for c in runner.cells if (c.dataset, str(c.labels)) == (dataset.split(SEPARATOR)[0], labels)]
        for first, second in pairs:
            of_first, of_second = ([cell for cell in cells if cell.arm == arm] for arm in (first, second))
            reasons = reasons_against(of_first, of_second, results, runner.experiment, command)
            tested_here = set(table.loc[table["dataset"] == dataset, "cell"])
            untested = sorted({cell.name for cell in (*of_first, *of_second)} - tested_here)
            if not reasons and untested:
                reasons = (f"no model of {untested[0]} was here to be tested",)
            if reasons:
                refused.append(f"{first} and {second}, {dataset}, {labels} labels are not compared: {reasons[0]}")
            else:
                splits = runner.splits[dataset.split(SEPARATOR)[0]]
                scores = pair_scores(runner.experiment, splits, table, dataset, labels, METRIC, first, second)
                family.append((scores, first, second))
    lines = []
    compared = compare(family, "", runner.experiment.alpha, declared)
    for score, result in zip([entry[0] for entry in family], compared, strict=True):
        runs = ", ".join(f"{d:+.3f}" for d in score.run_means(result.first) - score.run_means(result.second))
        names = [f"{result.first} minus {result.second}", *score.dataset.split(SEPARATOR), score.labels]
        lines.append([*names, str(result.estimate), runs, result.verdict])
    header = ["arms", "trained on", "tested on", "labels", f"{METRIC} [95 %]", "of each run", "verdict"]
    return "\n".join([*([markdown_table(header, lines), ""] if lines else []), *refused])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nnunetv2_swinfuse.benchmark.unseen_modality",
        description="Test the models of an experiment on the test cases of its other datasets. Explained in "
        "docs/benchmark.md.",
    )  # fmt: skip
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.json", help="an experiment that has been run")
    parser.add_argument("-o", dest="output", type=Path, help="its folder, as for swinfuse_benchmark")
    parser.add_argument("--results", type=Path, help=f"folder of {TABLE}; default OUTPUT/results")
    parser.add_argument(
        "--arms", nargs="+", action="extend", default=[], metavar="ARM",
        help="test the models of these arms only; default: of all",
    )  # fmt: skip
    parser.add_argument(
        "--compare", nargs=2, action="append", default=[], metavar=("FIRST", "SECOND"),
        help="print the difference between two arms; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--rescale", action="store_true",
        help="give images of another modality the scale of the training images first: CT is clipped to soft tissue, MR "
        "gets mean and standard deviation of CT",
    )  # fmt: skip
    parser.add_argument("-device", choices=get_args(Device), help="device to predict on; default: the experiment's")
    return parser


def check_arms(experiment: Experiment, pairs: Sequence[Sequence[str]], tested: Sequence[str]) -> None:
    """Raises BenchmarkError for arms that the experiment does not have."""
    names = [arm.name for arm in experiment.arms]
    for option, asked in (("--compare", {name for pair in pairs for name in pair}), ("--arms", set(tested))):
        if unknown := sorted(asked - set(names)):
            raise BenchmarkError(f"{option}: no arm is called {', '.join(unknown)}; there are {', '.join(names)}")


def run(options: argparse.Namespace) -> None:
    """Tests the models that have no rows yet, and prints the tables.

    Raises:
        BenchmarkError: for an unknown arm, splits that changed, or when there is nothing to test.
    """
    experiment = load_experiment(options.experiment)
    check_arms(experiment, options.compare, options.arms)
    root = output_folder(options, experiment)
    workspace = Workspace(root, (options.results or root / "results").absolute())
    runner = Runner(experiment, workspace)
    store_splits(workspace.results, runner.splits)
    # nnU-Net looks up the trainers of stock arms by this variable.
    os.environ[EXTERNAL_TRAINERS] = base_environment(experiment.device, 0)[EXTERNAL_TRAINERS]
    path = workspace.results / TABLE
    results = read_results(workspace, runner.cells)
    check_records(experiment, runner.cells, results)
    known = set(read_rows(path)[["cell", "dataset"]].itertuples(index=False, name=None))
    left = [
        (cell, tested)
        for cell, tested in pairs_to_test(runner, results)
        if cell.arm in (options.arms or {cell.arm})
        and (cell.name, both_datasets(cell.dataset, tested.name, options.rescale)) not in known
    ]
    waiting = [(cell, tested) for cell, tested in left if (runner.cell_run(cell).model / FINAL).is_file()]
    if not waiting and not known:
        raise BenchmarkError(
            f"{root}: no finished model, or no other dataset with its classes; run swinfuse_benchmark first"
        )
    if len(waiting) < len(left):
        print(f"{len(left) - len(waiting)} models of finished cells are not in {root} and are not tested.")
    tests = [runner.splits[tested.name][key(cell.labels, cell.seed, cell.fold)].test for cell, tested in waiting]
    with tqdm(total=sum(map(len, tests)), unit="case", disable=None) as bar:
        for (cell, tested), cases in zip(waiting, tests, strict=True):
            bar.set_description(f"{cell.name}{SEPARATOR}{tested.number}")
            device = options.device or experiment.device
            add_rows(path, rows_of_cell(runner.cell_run(cell), tested, cases, device, options.rescale, bar))
    table = rows_of_experiment(read_rows(path), runner, options.rescale)
    notice = f"{TRANSDUCTIVE}\n\n" if experiment.transductive else ""
    print(f"{notice}{format_means(table)}")
    if options.compare:
        command = resume_command(options.experiment, workspace, options.results is not None)
        print(f"\n{format_comparisons(table, options.compare, runner, results, command)}")
    print(f"\n{path}: {len(table)} rows")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 on bad input, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        with errors_without_traceback("unseen_modality"):
            run(options)
    except KeyboardInterrupt:
        print("unseen_modality: interrupted; run the same command again to resume.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
