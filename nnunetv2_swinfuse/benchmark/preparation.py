"""Prepares once what cells share: plans and preprocessed data of every dataset, encoders of every recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nnunetv2_swinfuse.architecture.encoder_file import PUBLISHED, file_hash
from nnunetv2_swinfuse.benchmark.arms import PLANS, SWINFUSE_PLANNER, Arm
from nnunetv2_swinfuse.benchmark.cells import Workspace
from nnunetv2_swinfuse.benchmark.commands import Processes, base_environment
from nnunetv2_swinfuse.benchmark.experiment import Experiment, Pretraining
from nnunetv2_swinfuse.benchmark.files import content_sha256, locked, write_json
from nnunetv2_swinfuse.errors import BenchmarkError

TIMED_STEPS = 20
ENCODER = "encoder.json"
# Within the folder of a pretraining.
PUBLISHED_ENCODER = f"nnUNet_results/{PUBLISHED}"
PREPARED = "prepared.json"
VOLUMES = "volumes.json"
WAITS = "Waiting until it has prepared what this one needs too."


@dataclass(frozen=True)
class Dataset:
    """A raw dataset of nnU-Net.

    Attributes:
        number, name: such as 501 and `Dataset501_Hippocampus`.
        folder: in nnUNet_raw.
        images, label: files of each labelled case.
    """

    number: int
    name: str
    folder: Path
    images: Mapping[str, tuple[Path, ...]]
    label: Mapping[str, Path]

    @property
    def content(self) -> dict[str, Any]:
        """Its dataset.json."""
        return json.loads((self.folder / "dataset.json").read_text())


def find_dataset(number: int) -> Dataset:
    """Raises BenchmarkError when nnUNet_raw has no such dataset, or one without labelled cases."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw = Path(os.environ.get("nnUNet_raw", ""))
    if not os.environ.get("nnUNet_raw") or not raw.is_dir():
        raise BenchmarkError("nnUNet_raw is not set or no folder; for example: export nnUNet_raw=/data/nnUNet_raw")
    folders = sorted(raw.glob(f"Dataset{number:03d}_*"))
    if len(folders) != 1:
        have = ", ".join(path.name for path in sorted(raw.glob("Dataset*"))) or "none"
        raise BenchmarkError(f"{raw}: {len(folders)} folders are dataset {number}, expected one; it has {have}")
    try:
        cases = get_filenames_of_train_images_and_targets(str(folders[0]))
    except (OSError, KeyError, ValueError, AssertionError) as error:
        raise BenchmarkError(f"{folders[0]}: not a dataset of nnU-Net ({type(error).__name__}: {error})") from error
    return Dataset(
        number,
        folders[0].name,
        folders[0],
        {str(name): tuple(map(Path, files["images"])) for name, files in cases.items()},
        {str(name): Path(files["label"]) for name, files in cases.items()},
    )


def file_digests(paths: Sequence[Path], cache: Path) -> dict[str, str]:
    """SHA-256 of what files hold, by path; remembered in `cache` as long as size and time of a file stay."""
    known: dict[str, list[Any]] = json.loads(cache.read_text()) if cache.is_file() else {}
    changed = False
    for path in paths:
        state = path.stat()
        mark = [state.st_size, state.st_mtime_ns]
        if known.get(str(path), [None])[:2] != mark:
            known[str(path)] = [*mark, content_sha256(path)]
            changed = True
    if changed:
        write_json(cache, known)
    return {str(path): known[str(path)][2] for path in paths}


class Preparation:
    """Prepares what is missing; each step is done once, even if several processes prepare at the same time."""

    def __init__(self, experiment: Experiment, workspace: Workspace, processes: Processes, threads: int) -> None:
        self.experiment = experiment
        self.workspace = workspace
        self.processes = processes
        self.threads = threads

    def environment(self, results: Path) -> dict[str, str]:
        environment = base_environment(self.experiment.device, self.threads)
        # Planning hands this number to torch.set_num_threads, which refuses 0.
        environment["nnUNet_n_proc_DA"] = "1"
        environment["nnUNet_preprocessed"] = str(self.workspace.preprocessed)
        environment["nnUNet_results"] = str(results)
        return environment

    def preprocess(self, dataset: Dataset, planner: str) -> None:
        """Plans and preprocesses with nnU-Net's commands; plans that share their data preprocess once."""
        folder = self.workspace.preprocessed / dataset.name
        configuration = self.experiment.configuration
        record = folder / PREPARED
        with locked(self.workspace.root / f"{dataset.name}.lock", WAITS) as lock:
            done: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
            name = f"{PLANS[planner]} {configuration}"
            if name in done:
                return
            print(f"Planning and preprocessing {dataset.name} with {planner}", flush=True)
            plans = folder / f"{PLANS[planner]}.json"
            options = ["-d", str(dataset.number)]
            processes = ["-np", str(self.threads or min(4, os.cpu_count() or 1))]

            def call(*command: str) -> None:
                environment = self.environment(self.workspace.root / "nnUNet_results")
                self.processes.call(command, environment, self.workspace.root / f"{dataset.name}.log", lock)

            if planner == SWINFUSE_PLANNER:
                # Looks for shared data itself.
                call("swinfuse_plan_and_preprocess", *options, "-c", configuration, "-npfp", processes[1], *processes)
            else:
                planning = [*options, "-pl", planner, "-npfp", processes[1], "--no_pp"]
                call("nnUNetv2_plan_and_preprocess", *planning)
            identifier = _data_identifier(plans, configuration)
            if planner != SWINFUSE_PLANNER and identifier not in done.values():
                call("nnUNetv2_preprocess", *options, "-plans_name", PLANS[planner], "-c", configuration, *processes)
            write_json(record, {**done, name: identifier})

    def pretrain(self, recipe: str) -> None:
        """The encoder of a recipe of `swinfuse_pretrain`, and which images it learnt from."""
        pretraining = self.experiment.pretraining
        assert pretraining is not None
        folder = self.workspace.pretraining(recipe)
        with locked(folder.with_suffix(".lock"), WAITS) as lock:
            record = folder / ENCODER
            self._check_pretraining(record)
            if not record.is_file():
                command = self._pretraining_command(pretraining, recipe)
                steps = pretraining.steps or self._steps_in(pretraining, recipe, command, lock)
                print(f"Pretraining: recipe {recipe}, {steps} steps", flush=True)
                results = folder / "nnUNet_results"
                command += ["--steps", str(steps)]
                begun = any(results.glob("*/swinfuse__*/checkpoint*.pth"))
                command += ["--c"] if begun else []
                self.processes.call(command, self.environment(results), folder / "log.txt", lock)
                encoder = folder / PUBLISHED_ENCODER
                write_json(folder / VOLUMES, self.learnt_digests(recipe))
                write_json(
                    record,
                    {
                        "recipe": recipe,
                        "collections": list(pretraining.collections),
                        "steps": steps,
                        "seconds": _training_seconds(results),
                        "sha256": file_hash(encoder),
                        "pretraining": pretraining_settings(self.experiment),
                    },
                )

    def _check_pretraining(self, record: Path) -> None:
        """Raises BenchmarkError when the encoder was pretrained in another way than the experiment says now."""
        before = json.loads(record.read_text()) if record.is_file() else {}
        asked = pretraining_settings(self.experiment)
        if before.get("pretraining", asked) != asked:
            raise BenchmarkError(
                f"{record.parent}: pretrained with {json.dumps(before['pretraining'])}, the experiment now says "
                f"{json.dumps(asked)}. Move the folder away to pretrain again, or restore the experiment"
            )

    def _pretraining_command(self, pretraining: Pretraining, recipe: str) -> list[str]:
        command = ["swinfuse_pretrain", "-d", *pretraining.collections, "-p", pretraining.preset, "--recipe", recipe]
        command += ["--device", self.experiment.device]
        for name, value in pretraining.settings.items():
            if isinstance(value, bool):
                command.append(f"--{name}" if value else f"--no-{name}")
            else:
                values = value if isinstance(value, list | tuple) else [value]
                command += [f"--{name}", *map(str, values)]
        return command

    def _steps_in(self, pretraining: Pretraining, recipe: str, command: list[str], lock: IO[str]) -> int:
        """How many steps fit into the budget in minutes, at the speed of a few timed ones."""
        assert pretraining.minutes is not None
        folder = self.workspace.pretraining(recipe)
        results = folder / "timing"
        timed = [*command, "--steps", str(TIMED_STEPS), "--warmup_steps", "1", "--overwrite"]
        self.processes.call(timed, self.environment(results), folder / "log.txt", lock)
        return max(1, round(pretraining.minutes * 60 / (_training_seconds(results) / TIMED_STEPS)))

    def learnt_digests(self, recipe: str) -> list[str]:
        """SHA-256 of what the volumes hold that a recipe learns from, sorted."""
        from pretraining.collections.collection import DOMAINS
        from pretraining.collections.modalities import ModalityMap
        from pretraining.collections.resolve import find_collections
        from pretraining.preset_files import load_preset

        pretraining = self.experiment.pretraining
        assert pretraining is not None
        raw = Path(os.environ["nnUNet_raw"])
        collection = find_collections(list(pretraining.collections), raw, ModalityMap.from_words([]), False, False)
        domains = load_preset(pretraining.preset, recipe).get("modalities", DOMAINS)
        volumes = [volume.path for volume in collection.volumes if volume.domain in domains]
        return sorted(set(file_digests(volumes, self.workspace.root / "digests.json").values()))


def seen_cases(arm: Arm, workspace: Workspace, images: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Which cases an arm's pretraining learnt from an image of; None where that is not known.

    Args:
        arm: with an encoder.
        images: SHA-256 of what the images of each case hold.
    """
    if not arm.recipe:
        return None
    learnt = set(json.loads((workspace.pretraining(arm.recipe) / VOLUMES).read_text()))
    return sorted(case for case, digests in images.items() if learnt & set(digests))


def encoder_of(arm: Arm, workspace: Workspace) -> dict[str, Any] | None:
    """The record of an arm's encoder, None for an arm without one.

    Raises:
        BenchmarkError: when its pretraining is not done.
    """
    if arm.encoder:
        path = Path(arm.encoder).absolute()
        return {"recipe": "", "path": str(path), "sha256": file_hash(path), "collections": None}
    if not arm.recipe:
        return None
    record = workspace.pretraining(arm.recipe) / ENCODER
    if not record.is_file():
        raise BenchmarkError(f"{record}: missing; the pretraining of recipe {arm.recipe} is not done")
    return {**json.loads(record.read_text()), "path": str(workspace.pretraining(arm.recipe) / PUBLISHED_ENCODER)}


def pretraining_settings(experiment: Experiment) -> Any:
    """The experiment's block `pretraining`, as plain values."""
    return experiment.to_dict()["pretraining"]


def _data_identifier(plans: Path, configuration: str) -> str:
    """Names the folder of preprocessed data; plans with the same identifier share it."""
    configurations = json.loads(plans.read_text())["configurations"]
    if configuration not in configurations:
        raise BenchmarkError(f"{plans}: nnU-Net planned no {configuration}; it has {', '.join(configurations)}")
    return str(configurations[configuration]["data_identifier"])


def _training_seconds(results: Path) -> float:
    from nnunetv2_swinfuse.architecture.torch_file import map_torch_file
    from pretraining.checkpoint import CHECKPOINT

    (checkpoint,) = results.glob(f"*/swinfuse__*/{CHECKPOINT}")
    return float(map_torch_file(checkpoint)["seconds"])
