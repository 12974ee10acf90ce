"""Prepares once what cells share: plans and preprocessed data of every dataset, encoders of every recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

from nnunetv2_swinfuse.architecture.file_hash import file_hash
from nnunetv2_swinfuse.benchmark.arms import PLANS, SWINFUSE_PLANNER, UNTRAINED
from nnunetv2_swinfuse.benchmark.cells import Workspace
from nnunetv2_swinfuse.benchmark.commands import Processes, base_environment
from nnunetv2_swinfuse.benchmark.digests import DIGESTS, case_digests, equal_cases, file_digests, joined_digest
from nnunetv2_swinfuse.benchmark.encoder_records import (
    ENCODER,
    PUBLISHED_ENCODER,
    VOLUMES,
    learning_settings,
    training_seconds,
)
from nnunetv2_swinfuse.benchmark.experiment import AS_STORED, Experiment, Pretraining, PretrainingRun
from nnunetv2_swinfuse.benchmark.files import locked, write_json, write_text
from nnunetv2_swinfuse.benchmark.places import Place
from nnunetv2_swinfuse.benchmark.raw_dataset import Dataset, describe_reoriented
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.nnunet_names import RAW

if TYPE_CHECKING:
    from pretraining.collections.collection import Collection

TIMED_STEPS = 20
PREPARED = "prepared.json"
# In it, beside the data identifier of each plans: the target spacing, empty where it is nnU-Net's own; the orientation,
# and the digest of all files, which earlier versions did not write.
SPACING, ORIENTATION, FILES = "spacing", "orientation", "files_sha256"
LEFT_OUT = "left_out.txt"
WAITS = "Waiting until it has prepared what this one needs too."


class Preparation:
    """Prepares what is missing; each step is done once, even if several processes prepare at the same time."""

    def __init__(
        self,
        experiment: Experiment,
        workspace: Workspace,
        processes: Processes,
        test_images: Sequence[Path] = (),
    ) -> None:
        """`test_images` are files of test cases: no pretraining sees them, unless the experiment is transductive."""
        self.experiment = experiment
        self.workspace = workspace
        self.processes = processes
        self.test_images = () if experiment.transductive else tuple(test_images)

    def environment(self, results: Path, place: Place) -> dict[str, str]:
        environment = base_environment(self.experiment.device, place.threads) | place.variables()
        # Planning hands this number to torch.set_num_threads, which refuses 0.
        environment["nnUNet_n_proc_DA"] = "1"
        environment["nnUNet_preprocessed"] = str(self.workspace.preprocessed)
        environment["nnUNet_results"] = str(results)
        return environment

    def _locked(self, path: Path) -> AbstractContextManager[IO[str]]:
        return locked(path, WAITS, lambda: self.processes.stopped)

    def preprocess(self, dataset: Dataset, planner: str, place: Place) -> None:
        """Plans and preprocesses with nnU-Net's commands; plans that share their data preprocess once."""
        folder = self.workspace.preprocessed / dataset.name
        configuration = self.experiment.configuration
        record = folder / PREPARED
        with self._locked(self.workspace.root / f"{dataset.name}.lock") as lock:
            done: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
            name = f"{PLANS[planner]} {configuration}"
            spacing = " ".join(f"{distance:g}" for distance in self.experiment.spacing)
            before = done.get(SPACING, "")
            if done and before != spacing:
                raise BenchmarkError(
                    f"{folder}: prepared at the spacing {before or 'that nnU-Net chose'}, the experiment now says "
                    f"{spacing or 'that nnU-Net chooses'}. Use another output folder (-o)"
                )
            orientation, oriented = self.experiment.orientation, done.get(ORIENTATION, AS_STORED)
            if done and oriented != orientation:
                raise BenchmarkError(
                    f"{folder}: prepared with the orientation {oriented}, the experiment now says {orientation}. Use "
                    "another output folder (-o)"
                )
            digests = case_digests(dataset.files, self.workspace.root / DIGESTS)
            if twins := equal_cases({case: of_case[:-1] for case, of_case in digests.items()}):
                raise BenchmarkError(
                    f"{dataset.folder}: {' and '.join(twins[0])} have the same image ({len(twins)} such groups), so a "
                    "test case could be trained on under another name. Remove all but one of each group"
                )
            digest = joined_digest(digests)
            if done.get(FILES, digest) != digest:
                raise BenchmarkError(
                    f"{folder}: prepared from other images or labels than those that are in {dataset.folder} now "
                    "(SHA-256 of the files). Restore them, or use another output folder (-o)"
                )
            if name in done:
                return
            raw: dict[str, str] = {}
            if orientation != AS_STORED:
                raw[RAW] = str(self.workspace.raw)
                describe_reoriented(dataset, self.workspace.raw)
            print(f"Planning and preprocessing {dataset.name} with {planner}", flush=True)
            plans = folder / f"{PLANS[planner]}.json"
            options = ["-d", str(dataset.number)]
            target = ["-overwrite_target_spacing", *spacing.split()] if spacing else []
            processes = ["-np", str(place.threads or min(4, os.cpu_count() or 1))]

            def call(*command: str) -> None:
                environment = self.environment(self.workspace.root / "nnUNet_results", place) | raw
                log = self.workspace.root / f"{dataset.name}.log"
                self.processes.call(command, environment, log, lock, place.cores)

            if planner == SWINFUSE_PLANNER:
                # Looks for shared data itself.
                planning = [*options, "-c", configuration, "-npfp", processes[1], *processes, *target]
                call("swinfuse_plan_and_preprocess", *planning)
            else:
                planning = [*options, "-pl", planner, "-npfp", processes[1], "--no_pp", *target]
                call("nnUNetv2_plan_and_preprocess", *planning)
            identifier = _data_identifier(plans, configuration)
            if planner != SWINFUSE_PLANNER and identifier not in done.values():
                call("nnUNetv2_preprocess", *options, "-plans_name", PLANS[planner], "-c", configuration, *processes)
            write_json(record, {**done, name: identifier, SPACING: spacing, ORIENTATION: orientation, FILES: digest})

    def finished_pretrainings(self) -> list[str]:
        """Names of the experiment's pretrainings that are done."""
        runs = self.experiment.pretraining_runs
        return [run.name for run in runs if (self.workspace.pretraining(run) / ENCODER).is_file()]

    def check(self, runs: Iterable[PretrainingRun]) -> None:
        """Refuses pretrainings that would fail, or whose encoders were pretrained in another way, before any begins.

        Raises:
            BenchmarkError: naming what differs, or what is missing.
        """
        wanted = list(runs)
        for run in wanted:
            self._check_pretraining(run)
        if not all((self.workspace.pretraining(run) / ENCODER).is_file() for run in wanted):
            self._collection()

    def pretrain(self, run: PretrainingRun, place: Place) -> None:
        """The encoder of a pretraining, and which images it learnt from.

        Raises:
            BenchmarkError: when the command fails, or the encoder there was pretrained in another way.
        """
        pretraining = self.experiment.pretraining
        assert pretraining is not None
        folder = self.workspace.pretraining(run)
        with self._locked(folder.parent / f"{folder.name}.lock") as lock:
            record = folder / ENCODER
            self._check_pretraining(run)
            if record.is_file():
                return
            collection, left_out = self._collection()
            command = self._pretraining_command(pretraining, run)
            told = ""
            leaving_out: list[str] = []
            if left_out:
                write_text(folder / LEFT_OUT, "".join(f"{identifier}\n" for identifier in left_out))
                leaving_out = ["--leave_out", str(folder / LEFT_OUT)]
                told = f", without {len(left_out)} patients of {collection.name}, because they are test cases"

            def call(words: Sequence[str], results: Path) -> None:
                environment = self.environment(results, place)
                self.processes.call([*command, *words], environment, folder / "log.txt", lock, place.cores)

            # Apart from training, whose --overwrite would delete the volumes that other pretrainings read.
            call([*leaving_out, "--preprocess_only"], folder / "nnUNet_results")
            steps = pretraining.steps if self.experiment.weights_needed(run) else 0
            if steps is None:
                # How many steps fit into the budget in minutes, at the speed of a few timed ones.
                assert pretraining.minutes is not None
                timing = ["--steps", str(TIMED_STEPS), "--warmup_steps", "1", "--overwrite", "--train_only"]
                call(timing, folder / "timing")
                per_step = training_seconds(folder / "timing") / TIMED_STEPS
                steps = max(1, round(pretraining.minutes * 60 / per_step))
            what = f"{steps} steps" if steps else "no steps: only its sizes or initial weights are needed"
            tqdm.write(f"Pretraining: {run.name}, {what}{told}")
            results = folder / "nnUNet_results"
            begun = any(results.glob("*/swinfuse__*/checkpoint*.pth"))
            call(["--steps", str(steps), "--train_only", *(["--c"] if begun else [])], results)
            write_json(folder / VOLUMES, self._learnt_digests(collection, run))
            write_json(
                record,
                {
                    "recipe": run.recipe,
                    "settings": dict(run.settings),
                    "seed": run.seed,
                    "collections": list(pretraining.collections),
                    "left_out": left_out,
                    "steps": steps,
                    "seconds": training_seconds(results),
                    "sha256": file_hash(folder / PUBLISHED_ENCODER),
                    "pretraining": pretraining_settings(self.experiment),
                    "learning_settings": learning_settings(results),
                },
            )

    def _check_pretraining(self, run: PretrainingRun) -> None:
        """Raises BenchmarkError when the encoder was pretrained in another way than the experiment says now."""
        record = self.workspace.pretraining(run) / ENCODER
        before = json.loads(record.read_text()) if record.is_file() else {}
        if before and Pretraining(**before["pretraining"]) != self.experiment.pretraining:
            asked = json.dumps(pretraining_settings(self.experiment))
            raise BenchmarkError(
                f"{record.parent}: pretrained with {json.dumps(before['pretraining'])}, the experiment now says "
                f"{asked}. Move the folder away to pretrain again, or restore the experiment"
            )
        if before.get("steps") == 0 and self.experiment.weights_needed(run):
            raise BenchmarkError(
                f"{record.parent}: not pretrained, because only arms from random weights needed it. Move the folder "
                "away to pretrain"
            )
        if before.get("steps", 0) and run.recipe == UNTRAINED:
            raise BenchmarkError(
                f"{record.parent}: trained for {before['steps']} steps by an earlier version; expected initial "
                "weights. Move the folder away"
            )
        # Names of folders leave signs out; records of earlier versions have no settings.
        settings = json.loads(json.dumps(dict(run.settings)))
        if before and before.get("settings", settings) != settings:
            raise BenchmarkError(
                f"{record.parent}: pretrained with the settings {json.dumps(before['settings'])}, an arm now has "
                f"{json.dumps(settings)}. Move the folder away to pretrain again, or restore the arm"
            )

    def _collection(self) -> tuple[Collection, list[str]]:
        """What is pretrained on, and the patients left out because a file of theirs is a test image.

        Raises:
            BenchmarkError: when encoders of this experiment were pretrained without other patients, or all are
                left out.
        """
        from pretraining.collections.collection import leave_out
        from pretraining.collections.modalities import ModalityMap
        from pretraining.collections.resolve import find_collections

        assert self.experiment.pretraining is not None
        names = list(self.experiment.pretraining.collections)
        whole = find_collections(names, Path(os.environ["nnUNet_raw"]), ModalityMap.from_words([]), False, False)
        cache = self.workspace.root / DIGESTS
        tested = set(file_digests(self.test_images, cache).values())
        digests = file_digests([volume.path for volume in whole.volumes], cache)
        left_out = [
            patient.identifier
            for patient in whole.patients
            if any(digests[str(volume.path)] in tested for volume in patient.volumes)
        ]
        if len(left_out) == len(whole.patients):
            raise BenchmarkError(
                f"{whole.name}: every patient is a test case: none is left for pretraining. Give 'test_cases' in place "
                'of folds, other collections, or "transductive": true'
            )
        for other in sorted(self.workspace.root.glob(f"pretraining/*/{ENCODER}")):
            before = json.loads(other.read_text()).get("left_out", [])
            if before != left_out:
                differing = sorted({*before} ^ {*left_out})
                raise BenchmarkError(
                    f"{other.parent} was pretrained without {len(before)} patients that are test cases, now there are "
                    f"{len(left_out)}; differing: {', '.join(differing[:5])}. Use another name or folder (-o), so that "
                    "all arms are pretrained on the same patients"
                )
        return leave_out(whole, left_out), left_out

    def _pretraining_command(self, pretraining: Pretraining, run: PretrainingRun) -> list[str]:
        command = ["swinfuse_pretrain", "-d", *pretraining.collections]
        command += ["-p", pretraining.preset, "--recipe", run.recipe, "--device", self.experiment.device]
        command += [] if run.seed is None else ["--seed", str(run.seed)]
        for name, value in run.settings.items():
            if isinstance(value, bool):
                command.append(f"--{name}" if value else f"--no-{name}")
                continue
            values = value if isinstance(value, list | tuple) else [value]
            # The strides of stages are one argument.
            nested = any(isinstance(entry, list | tuple) for entry in values)
            command += [f"--{name}", *([json.dumps(value)] if nested else map(str, values))]
        return command

    def _learnt_digests(self, collection: Collection, run: PretrainingRun) -> list[str]:
        """SHA-256 of what the volumes hold that a pretraining learns from, sorted."""
        from pretraining.collections.collection import DOMAINS
        from pretraining.preset_files import load_preset

        assert self.experiment.pretraining is not None
        preset = load_preset(self.experiment.pretraining.preset, run.recipe)
        domains = {**preset, **run.settings}.get("modalities", DOMAINS)
        volumes = [volume.path for volume in collection.volumes if volume.domain in domains]
        return sorted(set(file_digests(volumes, self.workspace.root / DIGESTS).values()))


def pretraining_settings(experiment: Experiment) -> Any:
    """The experiment's block `pretraining`, as plain values."""
    return experiment.to_dict()["pretraining"]


def _data_identifier(plans: Path, configuration: str) -> str:
    """Names the folder of preprocessed data; plans with the same identifier share it."""
    configurations = json.loads(plans.read_text())["configurations"]
    if configuration not in configurations:
        raise BenchmarkError(f"{plans}: nnU-Net planned no {configuration}; it has {', '.join(configurations)}")
    return str(configurations[configuration]["data_identifier"])
