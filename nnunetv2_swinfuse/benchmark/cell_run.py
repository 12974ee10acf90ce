"""One cell: its folder as nnU-Net expects it, nnU-Net's command, and the measures of what came out."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import pandas as pd

from nnunetv2_swinfuse.benchmark.cells import CASES, FAILURE, LOG, RESULT, SCRIPT, SPENT, Cell, Workspace
from nnunetv2_swinfuse.benchmark.commands import CommandError, Processes, base_environment
from nnunetv2_swinfuse.benchmark.experiment import Experiment
from nnunetv2_swinfuse.benchmark.files import content_sha256, joined_sha256, locked, write_json, write_text
from nnunetv2_swinfuse.benchmark.metrics import SUMMARY, measure_folder
from nnunetv2_swinfuse.benchmark.preparation import Dataset, encoder_of, file_digests, seen_cases
from nnunetv2_swinfuse.benchmark.splits import Split
from nnunetv2_swinfuse.benchmark.table import read_table, rows_frame, write_table
from nnunetv2_swinfuse.errors import BenchmarkError

FINAL = "checkpoint_final.pth"
VERSIONED = ("nnunetv2-swinfuse", "nnunetv2", "torch")


@dataclass(frozen=True)
class Place:
    """What a cell may use while it runs: threads, cores (Linux), a GPU; nothing set: all there is."""

    threads: int = 0
    cores: tuple[int, ...] = ()
    gpu: str = ""


def run_cell(
    experiment: Experiment,
    workspace: Workspace,
    cell: Cell,
    dataset: Dataset,
    splits: Mapping[int, Split],
    processes: Processes,
    place: Place,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Trains, lets nnU-Net validate on the test cases, measures; what an earlier, killed run began goes on.

    Args:
        experiment, workspace, cell, dataset: what to do, where and with what.
        splits: by fold, of the cell's labels and seed.
        processes: starts the command.
        place: where it may run.

    Returns:
        What the cell was, and its rows of the per-case table.

    Raises:
        BenchmarkError: when a command fails; `failure.json` then holds the message.
    """
    folder = workspace.cell(cell)
    # A training that outlived its killed benchmark holds the lock until it ends.
    with locked(folder / "lock", "Waiting for its training to end.") as lock:
        (folder / FAILURE).unlink(missing_ok=True)
        try:
            if not (folder / RESULT).is_file():
                _train(experiment, workspace, cell, dataset, splits, processes, place, lock)
        except BenchmarkError as error:
            write_json(folder / FAILURE, {"message": str(error)})
            raise
        return json.loads((folder / RESULT).read_text()), read_table(folder / CASES)


def _train(
    experiment: Experiment,
    workspace: Workspace,
    cell: Cell,
    dataset: Dataset,
    splits: Mapping[int, Split],
    processes: Processes,
    place: Place,
    lock: IO[str],
) -> None:
    arm = experiment.arm(cell.arm)
    folder = workspace.cell(cell)
    plans = lay_out(experiment, workspace, cell, splits)
    variables = cell_variables(experiment, workspace, cell, place)
    environment = {**base_environment(experiment.device, place.threads), **variables}
    model = folder / "nnUNet_results" / dataset.name
    model = model / f"{arm.trainer}Seeded__{arm.plans_name}__{experiment.configuration}" / f"fold_{cell.fold}"
    command = ["nnUNetv2_train", str(dataset.number), experiment.configuration, str(cell.fold)]
    command += ["-tr", f"{arm.trainer}Seeded", "-p", arm.plans_name, "-device", experiment.device]
    write_script(folder / SCRIPT, command, environment, variables)
    # Without a checkpoint nnU-Net's --c starts anew as well, but warns.
    command += ["--c"] if any(model.glob("checkpoint_*.pth")) else []
    spent = folder / SPENT
    before = json.loads(spent.read_text()) if spent.is_file() else 0.0
    start = time.monotonic()
    try:
        processes.call(command, environment, folder / LOG, lock, place.cores)
    finally:
        seconds = before + time.monotonic() - start
        write_json(spent, seconds)
    validation = model / "validation"
    split = splits[cell.fold]
    _require_all_cases(validation / SUMMARY, split, dataset)
    rows = [
        {"cell": cell.name, **asdict(cell), **row}
        for row in measure_folder(validation, dataset.content, experiment.tolerance_mm)
    ]
    write_table(rows_frame(rows), folder / CASES)
    write_json(folder / RESULT, describe(experiment, workspace, cell, dataset, split, plans, model, seconds))


def lay_out(experiment: Experiment, workspace: Workspace, cell: Cell, splits: Mapping[int, Split]) -> Path:
    """The cell's own nnUNet_preprocessed: links to the shared data, its own plans and splits. Returns the plans."""
    arm = experiment.arm(cell.arm)
    shared = workspace.preprocessed / cell.dataset
    own = workspace.cell(cell) / "nnUNet_preprocessed" / cell.dataset
    own.mkdir(parents=True, exist_ok=True)
    for name in ("dataset.json", "dataset_fingerprint.json"):
        shutil.copyfile(shared / name, own / name)
    for data in shared.iterdir():
        link = own / data.name
        if data.is_dir() and not link.is_symlink():
            link.symlink_to(data.absolute(), target_is_directory=True)
    planned = shared / f"{arm.plans_name}.json"
    try:
        content = json.loads(planned.read_text())
    except OSError as error:
        raise BenchmarkError(f"{planned}: missing; the dataset is not prepared (--prepare_only)") from error
    changed = change_plans(content, experiment.configuration, {**experiment.plans, **arm.plans}, str(planned))
    write_json(own / planned.name, changed)
    # nnU-Net counts folds by their place in the list.
    nothing: dict[str, list[str]] = {"train": [], "val": []}
    entries = [splits[fold].for_nnunet() if fold in splits else nothing for fold in range(max(splits) + 1)]
    write_json(own / "splits_final.json", entries)
    return own / planned.name


def change_plans(plans: dict[str, Any], configuration: str, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """nnU-Net's plans with another patch, batch or number of features.

    Raises:
        BenchmarkError: for a patch that the network's strides do not divide, or another number of stages.
    """
    block = plans["configurations"][configuration]
    arguments = block["architecture"]["arch_kwargs"]
    if "patch_size" in changes:
        patch = list(changes["patch_size"])
        total = [1, 1, 1]
        for stride in arguments["strides"]:
            total = [a * b for a, b in zip(total, stride, strict=True)]
        if len(patch) != 3 or any(size % divisor for size, divisor in zip(patch, total, strict=True)):
            raise BenchmarkError(
                f"plans.patch_size is {patch}; expected multiples of {total}, the strides of {where} (z, y, x)"
            )
        block["patch_size"] = patch
    if "batch_size" in changes:
        block["batch_size"] = int(changes["batch_size"])
    if "features_per_stage" in changes and "features_per_stage" in arguments:
        features = list(changes["features_per_stage"])
        if len(features) != len(arguments["features_per_stage"]):
            raise BenchmarkError(
                f"plans.features_per_stage lists {len(features)} stages, {where} has "
                f"{len(arguments['features_per_stage'])}"
            )
        arguments["features_per_stage"] = features
    return plans


def cell_variables(experiment: Experiment, workspace: Workspace, cell: Cell, place: Place) -> dict[str, str]:
    """The environment that makes nnU-Net's command this cell's."""
    arm = experiment.arm(cell.arm)
    folder = workspace.cell(cell).absolute()
    length = experiment.length
    variables = {
        "nnUNet_raw": os.environ.get("nnUNet_raw", ""),
        "nnUNet_preprocessed": str(folder / "nnUNet_preprocessed"),
        "nnUNet_results": str(folder / "nnUNet_results"),
        "BENCHMARK_SEED": str(cell.seed),
        "BENCHMARK_EPOCHS": str(length.epochs),
        "BENCHMARK_ITERATIONS": str(length.iterations),
        "BENCHMARK_VALIDATION_ITERATIONS": str(length.validation_iterations),
        "BENCHMARK_MIRRORING": str(int(experiment.mirroring)),
        "BENCHMARK_THREADS": str(place.threads),
        # The same, where the SwinFUSE trainers record it.
        "SWINFUSE_ITERATIONS_PER_EPOCH": str(length.iterations),
        "SWINFUSE_VALIDATION_ITERATIONS_PER_EPOCH": str(length.validation_iterations),
    }
    if place.gpu:
        variables["CUDA_VISIBLE_DEVICES"] = place.gpu
    for name, value in {**experiment.settings, **arm.settings}.items():
        variables[f"SWINFUSE_{name.upper()}"] = str(value)
    encoder = encoder_of(arm, workspace)
    if encoder is not None:
        variables["SWINFUSE_CHECKPOINT"] = str(Path(encoder["path"]).absolute())
    return variables


def write_script(
    path: Path, command: Sequence[str], environment: Mapping[str, str], variables: Mapping[str, str]
) -> None:
    """`run.sh` repeats the cell by hand."""
    names = [*variables, "nnUNet_extTrainer", *(n for n in ("nnUNet_n_proc_DA",) if n in environment)]
    exports = "\n".join(f"export {name}={shlex.quote(environment[name])}" for name in names)
    head = "#!/usr/bin/env bash\n# This cell by hand; --c goes on with what is there.\n"
    write_text(path, f'{head}{exports}\n{shlex.join(command)} "$@"\n')
    path.chmod(0o755)


def describe(
    experiment: Experiment,
    workspace: Workspace,
    cell: Cell,
    dataset: Dataset,
    split: Split,
    plans: Path,
    model: Path,
    seconds: float,
) -> dict[str, Any]:
    """All that decides whether a cell may be compared with another, and what it cost."""
    from nnunetv2_swinfuse.benchmark.trainers import COST

    arm = experiment.arm(cell.arm)
    digests = file_digests(
        [path for case in split.test for path in (*dataset.images[case], dataset.label[case])],
        workspace.root / "digests.json",
    )
    encoder = encoder_of(arm, workspace)
    if encoder is not None:
        # A path of this machine says nothing elsewhere; the SHA-256 does.
        del encoder["path"]
        images = {case: [digests[str(path)] for path in dataset.images[case]] for case in split.test}
        encoder["saw"] = seen_cases(arm, workspace, images)
    return {
        "cell": asdict(cell),
        "arm": {**arm.to_dict(), "encoder": Path(arm.encoder).name},
        "plans_sha256": content_sha256(plans),
        "split_sha256": split.sha256,
        "labels_sha256": joined_sha256(f"{case} {digests[str(dataset.label[case])]}" for case in split.test),
        "images_sha256": joined_sha256(
            f"{case} {digests[str(path)]}" for case in split.test for path in dataset.images[case]
        ),
        "checkpoint": FINAL,
        "mirroring": experiment.mirroring,
        "tolerance_mm": experiment.tolerance_mm,
        "length": asdict(experiment.length),
        "settings": dict(experiment.settings),
        "encoder": encoder,
        "versions": {name: installed(name) for name in VERSIONED},
        "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
        "device": experiment.device,
        "seconds": seconds,
        "cost": json.loads((model / COST).read_text()),
        "curve": learning_curve(model / FINAL),
        "foreground_mean": json.loads((model / "validation" / SUMMARY).read_text())["foreground_mean"]["Dice"],
    }


def learning_curve(checkpoint: Path) -> dict[str, list[float]]:
    """Losses and nnU-Net's pseudo Dice of every epoch, from a checkpoint that this experiment wrote."""
    from nnunetv2_swinfuse.plain_loading import load_plain

    log = load_plain(checkpoint)["logging"]
    names = ("train_losses", "val_losses", "mean_fg_dice")
    return {name: [round(float(value), 5) for value in log[name]] for name in names}


def installed(package: str) -> str:
    """The version of a package, in words where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _require_all_cases(summary: Path, split: Split, dataset: Dataset) -> None:
    if not summary.is_file():
        raise CommandError(f"{summary}: missing, although nnU-Net's training ended without an error")
    ending = dataset.content["file_ending"]
    entries = json.loads(summary.read_text())["metric_per_case"]
    found = {Path(entry["prediction_file"]).name.removesuffix(ending) for entry in entries}
    if found != set(split.test):
        raise BenchmarkError(
            f"{summary}: evaluated {len(found)} cases, the split has {len(split.test)}; differing: "
            f"{', '.join(sorted(found ^ set(split.test))[:5])}. Delete {summary.parent} and run the cell again"
        )
