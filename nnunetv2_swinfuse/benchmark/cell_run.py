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

from nnunetv2_swinfuse.benchmark.arms import Arm
from nnunetv2_swinfuse.benchmark.cells import CASES, FAILURE, LOG, RESULT, SCRIPT, SPENT, Cell, Workspace
from nnunetv2_swinfuse.benchmark.commands import CommandError, Processes, base_environment
from nnunetv2_swinfuse.benchmark.digests import DIGESTS, case_digests, content_sha256, joined_digest, settings_sha256
from nnunetv2_swinfuse.benchmark.encoder_records import encoder_of, seen_cases
from nnunetv2_swinfuse.benchmark.experiment import Experiment
from nnunetv2_swinfuse.benchmark.files import locked, write_json, write_text
from nnunetv2_swinfuse.benchmark.metrics import SUMMARY, measure_folder
from nnunetv2_swinfuse.benchmark.places import Place
from nnunetv2_swinfuse.benchmark.raw_dataset import Dataset
from nnunetv2_swinfuse.benchmark.splits import Split
from nnunetv2_swinfuse.benchmark.table import read_table, rows_frame, write_table
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.nnunet_names import PLANS_FILE

FINAL = "checkpoint_final.pth"
VERSIONED = ("nnunetv2-swinfuse", "nnunetv2", "torch")


@dataclass(frozen=True)
class CellRun:
    """One cell with everything that training and evaluating it needs.

    Attributes:
        experiment, workspace, cell, dataset: what to train, where, and on what.
        splits: by fold, of the cell's labels and seed.
    """

    experiment: Experiment
    workspace: Workspace
    cell: Cell
    dataset: Dataset
    splits: Mapping[int, Split]

    @property
    def arm(self) -> Arm:
        return self.experiment.arm(self.cell.arm)

    @property
    def folder(self) -> Path:
        return self.workspace.cell(self.cell)

    @property
    def split(self) -> Split:
        return self.splits[self.cell.fold]

    @property
    def trainer(self) -> str:
        """The arm's trainer with a seed; see `trainers.py`."""
        return f"{self.arm.trainer}Seeded"

    @property
    def model(self) -> Path:
        """Where nnU-Net writes the checkpoints of this cell's fold."""
        name = f"{self.trainer}__{self.arm.plans_name}__{self.experiment.configuration}"
        return self.folder / "nnUNet_results" / self.dataset.name / name / f"fold_{self.cell.fold}"

    def run(self, processes: Processes, place: Place) -> tuple[dict[str, Any], pd.DataFrame]:
        """Trains, lets nnU-Net predict and evaluate the test cases, and measures; resumes what a killed run began.

        Args:
            processes: starts the command.
            place: the threads, cores and GPU for it.

        Returns:
            The cell's record (see :meth:`record`) and its rows of the per-case table.

        Raises:
            BenchmarkError: when a command fails; `failure.json` then holds the message.
        """
        # A training that outlives its killed benchmark holds the lock until it ends.
        with locked(self.folder / "lock", "Waiting for its training to end.", lambda: processes.stopped) as lock:
            (self.folder / FAILURE).unlink(missing_ok=True)
            try:
                if not (self.folder / RESULT).is_file():
                    self._train(processes, place, lock)
            except BenchmarkError as error:
                write_json(self.folder / FAILURE, {"message": str(error)})
                raise
            return json.loads((self.folder / RESULT).read_text()), read_table(self.folder / CASES)

    def _train(self, processes: Processes, place: Place, lock: IO[str]) -> None:
        plans = self.lay_out()
        variables = self.variables(place)
        environment = {**base_environment(self.experiment.device, place.threads), **variables}
        command = ["nnUNetv2_train", str(self.dataset.number), self.experiment.configuration, str(self.cell.fold)]
        command += ["-tr", self.trainer, "-p", self.arm.plans_name, "-device", self.experiment.device]
        write_script(self.folder / SCRIPT, command, environment, variables)
        # nnU-Net's --c also works without a checkpoint, but warns.
        command += ["--c"] if any(self.model.glob("checkpoint_*.pth")) else []
        spent = self.folder / SPENT
        before = json.loads(spent.read_text()) if spent.is_file() else 0.0
        start = time.monotonic()
        try:
            processes.call(command, environment, self.folder / LOG, lock, place.cores)
        finally:
            seconds = before + time.monotonic() - start
            write_json(spent, seconds)
        validation = self.model / "validation"
        _require_all_cases(validation / SUMMARY, self.split, self.dataset)
        rows = [
            {"cell": self.cell.name, **asdict(self.cell), **row}
            for row in measure_folder(validation, self.dataset.content, self.experiment.tolerance_mm)
        ]
        write_table(rows_frame(rows), self.folder / CASES)
        write_json(self.folder / RESULT, self.record(plans, seconds))

    def lay_out(self) -> Path:
        """Writes the cell's own nnUNet_preprocessed: its plans and splits, and links to the shared data.

        Returns:
            The plans.

        Raises:
            BenchmarkError: when the dataset is not prepared, or the experiment's changes do not fit its plans.
        """
        shared = self.workspace.preprocessed / self.cell.dataset
        own = self.folder / "nnUNet_preprocessed" / self.cell.dataset
        own.mkdir(parents=True, exist_ok=True)
        for name in ("dataset.json", "dataset_fingerprint.json"):
            shutil.copyfile(shared / name, own / name)
        for data in shared.iterdir():
            link = own / data.name
            if data.is_dir() and not link.is_symlink():
                link.symlink_to(data.absolute(), target_is_directory=True)
        plans = own / f"{self.arm.plans_name}.json"
        write_json(plans, self.changed_plans())
        # nnU-Net counts folds by their place in the list.
        nothing: dict[str, list[str]] = {"train": [], "val": []}
        folds = range(max(self.splits) + 1)
        entries = [self.splits[fold].for_nnunet() if fold in self.splits else nothing for fold in folds]
        write_json(own / "splits_final.json", entries)
        return plans

    def changed_plans(self) -> dict[str, Any]:
        """The dataset's plans with the experiment's changes.

        Raises:
            BenchmarkError: when the dataset is not prepared, or the changes do not fit its plans.
        """
        planned = self.workspace.preprocessed / self.cell.dataset / f"{self.arm.plans_name}.json"
        try:
            content = json.loads(planned.read_text())
        except OSError as error:
            raise BenchmarkError(f"{planned}: missing; the dataset is not prepared (--prepare_only)") from error
        changes = self.experiment.plans_changes(self.arm)
        return change_plans(content, self.experiment.configuration, changes, str(planned))

    def variables(self, place: Place) -> dict[str, str]:
        """The environment variables that make nnU-Net's command this cell's."""
        folder = self.folder.absolute()
        length = self.experiment.length
        variables = {
            "nnUNet_raw": os.environ.get("nnUNet_raw", ""),
            "nnUNet_preprocessed": str(folder / "nnUNet_preprocessed"),
            "nnUNet_results": str(folder / "nnUNet_results"),
            "BENCHMARK_SEED": str(self.cell.seed),
            "BENCHMARK_EPOCHS": str(length.epochs),
            "BENCHMARK_ITERATIONS": str(length.iterations),
            "BENCHMARK_VALIDATION_ITERATIONS": str(length.validation_iterations),
            "BENCHMARK_MIRRORING": str(int(self.experiment.mirroring)),
            "BENCHMARK_MIRRORED_TRAINING": str(int(self.experiment.mirrored_training)),
            "BENCHMARK_THREADS": str(place.threads),
            # The same numbers again: the SwinFUSE trainers record these.
            "SWINFUSE_ITERATIONS_PER_EPOCH": str(length.iterations),
            "SWINFUSE_VALIDATION_ITERATIONS_PER_EPOCH": str(length.validation_iterations),
            **place.variables(),
        }
        for name, value in {**self.experiment.settings, **self.arm.settings}.items():
            variables[f"SWINFUSE_{name.upper()}"] = str(value)
        encoder = self.encoder()
        if encoder is not None:
            variables["SWINFUSE_CHECKPOINT"] = str(Path(encoder["path"]).absolute())
        return variables

    def encoder(self) -> dict[str, Any] | None:
        """The record of the encoder that this cell begins with, see :func:`encoder_of`."""
        return encoder_of(self.experiment, self.arm, self.cell.seed, self.workspace)

    def record(self, plans: Path, seconds: float) -> dict[str, Any]:
        """Everything that decides whether the cell may be compared with another, and what it cost.

        Args:
            plans: that the cell was trained with.
            seconds: that training and validation took in the sessions that were measured. The record has at least those
                that the training itself recorded: a session that was killed is not measured.
        """
        from nnunetv2_swinfuse.benchmark.trainers import COST

        log, cost = training_log(self.model / FINAL), json.loads((self.model / COST).read_text())
        configurations = json.loads((self.model.parent / PLANS_FILE).read_text())["configurations"]
        architecture = configurations[self.experiment.configuration]["architecture"]
        files, train, test = self.dataset.files, self.split.train, self.split.test
        digests = case_digests({case: files[case] for case in (*train, *test)}, self.workspace.root / DIGESTS)
        test_images = {case: digests[case][:-1] for case in test}
        encoder = self.encoder()
        if encoder is not None:
            # A path on this machine says nothing elsewhere; the SHA-256 does. The rest is in experiment.json.
            elsewhere = ("path", "pretraining", "left_out")
            encoder = {name: value for name, value in encoder.items() if name not in elsewhere}
            if (learnt := encoder.pop("learning_settings", None)) is not None:
                encoder["learning_settings_sha256"] = settings_sha256(learnt)
            pretraining = self.experiment.pretraining_run(self.arm, self.cell.seed)
            # What a file was pretrained on is not known.
            encoder["saw"] = pretraining and seen_cases(self.workspace.pretraining(pretraining), test_images)
        return {
            "cell": asdict(self.cell),
            "arm": {**self.arm.to_dict(), "encoder": Path(self.arm.encoder).name},
            "plans_sha256": content_sha256(plans),
            "stem_features": architecture["arch_kwargs"].get("stem_features"),
            "split_sha256": self.split.sha256,
            "training_sha256": joined_digest({case: digests[case] for case in train}),
            "labels_sha256": joined_digest({case: digests[case][-1:] for case in test}),
            "images_sha256": joined_digest(test_images),
            "checkpoint": FINAL,
            "mirroring": self.experiment.mirroring,
            "mirrored_training": self.experiment.mirrored_training,
            "orientation": self.experiment.orientation,
            "configuration": self.experiment.configuration,
            "spacing": list(self.experiment.spacing),
            "plans": dict(self.experiment.plans),
            "tolerance_mm": self.experiment.tolerance_mm,
            "length": asdict(self.experiment.length),
            "settings": dict(self.experiment.settings),
            "encoder": encoder,
            "versions": {name: installed(name) for name in VERSIONED},
            "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
            "device": self.experiment.device,
            "seconds": max(seconds, recorded_seconds(log, cost)),
            "cost": cost,
            "curve": learning_curve(log),
            "foreground_mean": json.loads((self.model / "validation" / SUMMARY).read_text())["foreground_mean"]["Dice"],
        }


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
                f"{len(arguments['features_per_stage'])}; give arms and datasets with other networks an experiment of "
                "their own"
            )
        arguments["features_per_stage"] = features
    return plans


def write_script(
    path: Path, command: Sequence[str], environment: Mapping[str, str], variables: Mapping[str, str]
) -> None:
    """Writes `run.sh`, which repeats the cell by hand."""
    names = [*variables, "nnUNet_extTrainer", *(n for n in ("nnUNet_n_proc_DA",) if n in environment)]
    exports = "\n".join(f"export {name}={shlex.quote(environment[name])}" for name in names)
    head = "#!/usr/bin/env bash\n# Trains this cell by hand; --c resumes from its checkpoint.\n"
    write_text(path, f'{head}{exports}\n{shlex.join(command)} "$@"\n')
    path.chmod(0o755)


def training_log(checkpoint: Path) -> dict[str, Any]:
    """What nnU-Net recorded of every epoch, from a checkpoint that this experiment wrote."""
    from nnunetv2_swinfuse.plain_loading import load_plain

    return load_plain(checkpoint)["logging"]


def learning_curve(log: Mapping[str, Any]) -> dict[str, list[float]]:
    """Losses and nnU-Net's pseudo Dice of every epoch."""
    names = ("train_losses", "val_losses", "mean_fg_dice")
    return {name: [round(float(value), 5) for value in log[name]] for name in names}


def recorded_seconds(log: Mapping[str, Any], cost: Mapping[str, Any]) -> float:
    """Duration of all epochs and of the network's passes over the test cases; loading and export are not in it."""
    starts, ends = log["epoch_start_timestamps"], log["epoch_end_timestamps"]
    epochs = sum(float(end) - float(start) for start, end in zip(starts, ends, strict=True))
    return epochs + cost["inference_seconds_per_case"] * cost["predicted_cases"]


def installed(package: str) -> str:
    """The version of a package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _require_all_cases(summary: Path, split: Split, dataset: Dataset) -> None:
    if not summary.is_file():
        raise CommandError(f"{summary}: missing, although nnU-Net's training ended without an error")
    ending = dataset.content["file_ending"]
    entries = json.loads(summary.read_text())["metric_per_case"]
    evaluated = {Path(entry["prediction_file"]).name.removesuffix(ending) for entry in entries}
    if evaluated != set(split.test):
        raise BenchmarkError(
            f"{summary}: evaluated {len(evaluated)} cases, the split has {len(split.test)}; differing: "
            f"{', '.join(sorted(evaluated ^ set(split.test))[:5])}. Delete {summary.parent} and run the cell again"
        )
