"""Models of an experiment on the test cases of its other datasets, such as those trained on MR on CT.

    python -m nnunetv2_swinfuse.benchmark.unseen_modality EXPERIMENT.json -o FOLDER --compare swinfuse scratch

The models are those that `swinfuse_benchmark` has trained in FOLDER. No case of the other dataset was labelled in
training. Images are brought to the orientation of the training images, which nnU-Net would not do; classes are matched
by name. `unseen.csv` in the results folder has one row for each cell, case and class; rows that exist are kept, so the
command can be interrupted and repeated as cells are added.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from nnunetv2_swinfuse.benchmark.cell_run import FINAL, CellRun
from nnunetv2_swinfuse.benchmark.cells import Cell, Workspace
from nnunetv2_swinfuse.benchmark.commands import base_environment
from nnunetv2_swinfuse.benchmark.experiment import load_experiment
from nnunetv2_swinfuse.benchmark.files import locked, write_text
from nnunetv2_swinfuse.benchmark.options import output_folder
from nnunetv2_swinfuse.benchmark.preparation import Dataset
from nnunetv2_swinfuse.benchmark.runner import Runner
from nnunetv2_swinfuse.benchmark.splits import key
from nnunetv2_swinfuse.errors import BenchmarkError, errors_without_traceback
from nnunetv2_swinfuse.imaging.orientation import orientation_code
from nnunetv2_swinfuse.nnunet_names import EXTERNAL_TRAINERS
from nnunetv2_swinfuse.statistics import estimate
from pretraining.markdown import markdown_table
from pretraining.voxel_probe.datasets import label_key

TABLE = "unseen.csv"
COLUMNS = ["cell", "arm", "dataset", "tested_on", "labels", "seed", "fold", "case", "class", "dice"]
TEXT = ("cell", "arm", "dataset", "tested_on", "labels", "case", "class")


def read_oriented(path: Path, code: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Voxels (z, y, x) of a volume and their spacing in mm, with its axes exchanged and flipped to a code."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), code)
    return sitk.GetArrayFromImage(image), tuple(image.GetSpacing()[::-1])


def common_orientation(paths: Sequence[Path]) -> str:
    """The orientation code that most volumes have."""
    codes = []
    for path in paths:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        codes.append(orientation_code(reader.GetDirection()))
    return Counter(codes).most_common(1)[0][0]


def common_classes(trained: Mapping[str, Any], tested: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Values of each class in two datasets' labels, by its name in the first; background and regions are left out."""
    of_tested = {label_key(name): value for name, value in tested.items() if isinstance(value, int)}
    common = {
        name: (value, of_tested[label_key(name)])
        for name, value in trained.items()
        if isinstance(value, int) and value and label_key(name) in of_tested and name != "ignore"
    }
    return common


def dice_of_case(
    predictor: nnUNetPredictor, images: Sequence[Path], label: Path, code: str, classes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, float]]:
    """Class and Dice; NaN where neither the reference nor the prediction has the class.

    Args:
        predictor: with a model.
        images: the channels of the case.
        label: its reference.
        code: orientation of the training images.
        classes: as from :func:`common_classes`.
    """
    channels = [read_oriented(path, code) for path in images]
    voxels = np.stack([channel for channel, _ in channels]).astype(np.float32)
    prediction = predictor.predict_single_npy_array(voxels, {"spacing": list(channels[0][1])})
    reference, _ = read_oriented(label, code)
    for name, (predicted_value, reference_value) in classes.items():
        ours, theirs = prediction == predicted_value, reference == reference_value
        total = int(ours.sum()) + int(theirs.sum())
        yield name, 2 * int((ours & theirs).sum()) / total if total else float("nan")


def load_model(run: CellRun) -> nnUNetPredictor:
    """The model of a finished cell, predicting as the experiment does."""
    device = torch.device(run.experiment.device)
    predictor = nnUNetPredictor(use_mirroring=run.experiment.mirroring, device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(run.model.parent), (run.cell.fold,), FINAL)
    if not isinstance(predictor.label_manager, LabelManager) or predictor.label_manager.has_regions:
        raise BenchmarkError(f"{run.dataset.name}: its classes are regions; expected labels")
    return predictor


def rows_of_cell(run: CellRun, tested: Dataset, cases: Sequence[str], bar: tqdm[Any]) -> list[dict[str, Any]]:
    """Rows of one cell's model on the test cases of another dataset."""
    classes = common_classes(run.dataset.content["labels"], tested.content["labels"])
    code = common_orientation([run.dataset.images[case][0] for case in run.split.train])
    predictor = load_model(run)
    rows = []
    for case in cases:
        for name, dice in dice_of_case(predictor, tested.images[case], tested.label[case], code, classes):
            of_cell = {"cell": run.cell.name, **asdict(run.cell), "tested_on": tested.name}
            rows.append({**of_cell, "case": case, "class": name, "dice": dice})
        bar.update()
    return rows


def pairs_to_test(runner: Runner) -> list[tuple[Cell, Dataset]]:
    """Cells whose model is on this machine, and the other datasets that share a class and the number of channels."""
    pairs = []
    for cell in runner.cells:
        run = runner.cell_run(cell)
        if not (run.model / FINAL).is_file() or not (run.model / "validation" / "summary.json").is_file():
            continue
        for tested in runner.datasets.values():
            channels = [len(next(iter(dataset.images.values()))) for dataset in (run.dataset, tested)]
            common = common_classes(run.dataset.content["labels"], tested.content["labels"])
            if tested.name != cell.dataset and common and channels[0] == channels[1]:
                pairs.append((cell, tested))
    return pairs


def read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values={"dice": [""]})


def add_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to the table; several processes may do so at once."""
    with locked(path.with_suffix(".lock")):
        new = pd.DataFrame(list(rows), columns=COLUMNS)
        table = pd.concat([read_table(path), new], ignore_index=True) if path.is_file() else new
        table = table.drop_duplicates(["cell", "tested_on", "case", "class"], keep="last")
        table = table.sort_values(["cell", "tested_on", "case", "class"], kind="stable")
        write_text(path, table.to_csv(index=False, float_format="%.7g", lineterminator="\n"))


def case_means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice over the classes of each case: rows are seeds and folds, columns are cases."""
    return table.pivot_table(index=["seed", "fold"], columns="case", values="dice", aggfunc="mean")


def format_means(table: pd.DataFrame) -> str:
    """A Markdown table of the mean Dice of each arm, with that of each run."""
    lines = []
    for (dataset, tested, labels, arm), rows in table.groupby(["dataset", "tested_on", "labels", "arm"], sort=True):
        runs = case_means(rows).mean(axis=1)
        lines.append([dataset, tested, labels, arm, f"{runs.mean():.3f}", ", ".join(f"{run:.3f}" for run in runs)])
    return markdown_table(["trained on", "tested on", "labels", "arm", "Dice", "of each run"], lines)


def format_comparison(table: pd.DataFrame, first: str, second: str) -> str:
    """A Markdown table: first arm minus second, with a 95 % interval that covers runs and cases.

    Raises:
        BenchmarkError: when no run of both was tested on the same cases.
    """
    lines = []
    for (dataset, tested, labels), rows in table.groupby(["dataset", "tested_on", "labels"], sort=True):
        of_arm = [case_means(rows[rows["arm"] == arm]) for arm in (first, second)]
        difference = (of_arm[0] - of_arm[1]).dropna(axis=0, how="all").dropna(axis=1)
        if not difference.size:
            continue
        folds = [part.to_numpy() for _, part in difference.groupby(level="fold")]
        result = estimate(folds)
        low, high = result.interval()
        interval = f" [{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else ""
        runs = ", ".join(f"{value:+.3f}" for value in difference.mean(axis=1))
        lines.append([dataset, tested, labels, f"{result.mean:+.3f}{interval}", runs])
    if not lines:
        raise BenchmarkError(f"--compare {first} {second}: no run of both was tested on the same cases")
    header = ["trained on", "tested on", "labels", "Dice [95 % over runs and cases]", "of each run"]
    return f"{first} minus {second}\n\n{markdown_table(header, lines)}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nnunetv2_swinfuse.benchmark.unseen_modality",
        description="Test the models of an experiment on the test cases of its other datasets. Explained in "
        "docs/benchmark.md.",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.json", help="an experiment that has been run")
    parser.add_argument("-o", dest="output", type=Path, help="its folder, as for swinfuse_benchmark")
    parser.add_argument("--results", type=Path, help=f"folder of {TABLE}; default OUTPUT/results")
    parser.add_argument(
        "--compare", nargs=2, action="append", default=[], metavar=("FIRST", "SECOND"),
        help="print the difference between two arms; may be repeated",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default 1")
    return parser


def run(options: argparse.Namespace) -> None:
    """Tests the models that have no rows yet, and prints the tables.

    Raises:
        BenchmarkError: when there is no model and no row, or as :func:`format_comparison`.
    """
    experiment = load_experiment(options.experiment)
    root = output_folder(options, experiment)
    workspace = Workspace(root, (options.results or root / "results").absolute())
    runner = Runner(experiment, workspace)
    # nnU-Net looks up the trainers of stock arms by this variable.
    os.environ[EXTERNAL_TRAINERS] = base_environment(experiment.device, 0)[EXTERNAL_TRAINERS]
    path = workspace.results / TABLE
    done = set(read_table(path)[["cell", "tested_on"]].itertuples(index=False, name=None))
    waiting = [(cell, tested) for cell, tested in pairs_to_test(runner) if (cell.name, tested.name) not in done]
    if not waiting and not done:
        raise BenchmarkError(
            f"{root}: no finished model, or no other dataset with its classes; run swinfuse_benchmark first"
        )
    tests = [runner.splits[tested.name][key(cell.labels, cell.seed, cell.fold)].test for cell, tested in waiting]
    with tqdm(total=sum(map(len, tests)), unit="case", disable=None) as bar:
        for (cell, tested), cases in zip(waiting, tests, strict=True):
            bar.set_description(f"{cell.name} on {tested.number}")
            add_rows(path, rows_of_cell(runner.cell_run(cell), tested, cases, bar))
    table = read_table(path)
    print(format_means(table))
    for first, second in options.compare:
        print(f"\n{format_comparison(table, first, second)}")
    print(f"\n{path}: {len(table)} rows")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 on bad input, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        with errors_without_traceback("unseen_modality"):
            run(options)
    except KeyboardInterrupt:
        print("unseen_modality: interrupted; run the same command again to resume.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
