"""Small models of real datasets, trained with this package's commands on some of their cases; the others are held out.

Plans for little memory and few iterations: what is tested does not depend on how good the masks are, but they must
hold structures, which `comparison.py` checks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PLANS, CONFIGURATION, FOLD = "nnUNetSmallPlans", "3d_fullres", "0"
TRAINER = "nnUNetTrainerSwinFUSE_5epochs"
COMMANDS = {
    "swinfuse_pretrain": "pretraining.cli",
    "swinfuse_plan_and_preprocess": "nnunetv2_swinfuse.planning.plan_and_preprocess",
    "swinfuse_train": "nnunetv2_swinfuse.training.train",
    "swinfuse_export": "nnunetv2_swinfuse.inference.export",
    "swinfuse_predict": "nnunetv2_swinfuse.inference.predict",
}
# In GB, by nnU-Net's planner; patches are then about 32 voxels or more along each axis.
MEMORY = "0.4"
PRETRAINING = ("-p", "tiny", "--steps", "20", "--spacing", "3", "3", "3", "--workers", "0", "--device", "cpu")
SETTINGS = {
    "SWINFUSE_INITIAL_LR": "1e-3",
    "SWINFUSE_VALIDATION_ITERATIONS_PER_EPOCH": "2",
    # Augmentation in the same process.
    "nnUNet_n_proc_DA": "0",
}


@dataclass(frozen=True)
class Selection:
    """What is trained on and what is not.

    Attributes:
        dataset: its folder.
        training: how many of the first cases, by name, are trained on.
        held_out: how many of the last are not.
        spacing: of the plans in mm; empty for nnU-Net's choice.
        flags: of prediction.
    """

    dataset: str
    training: int
    held_out: int
    spacing: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def number(self) -> str:
        return self.dataset[len("Dataset") :].split("_")[0]


class TrainingRoot:
    """nnU-Net's three folders below one.

    Args:
        root: of the three folders.
        source: folder of datasets in nnU-Net's raw layout.
        iterations: of an epoch; there are five.
    """

    def __init__(self, root: Path, source: Path, iterations: int):
        self.root, self.source, self.iterations = root, source, iterations

    def run(self, command: str, *arguments: object) -> None:
        """One of this package's commands, from this checkout.

        Raises:
            SystemExit: with the end of its output, when it fails.
        """
        folders = {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}
        iterations = {"SWINFUSE_ITERATIONS_PER_EPOCH": str(self.iterations)} if command == "swinfuse_train" else {}
        # Planning hands the number of processes to torch.set_num_threads.
        settings = SETTINGS if command == "swinfuse_train" else {"nnUNet_n_proc_DA": "1"}
        code = f"from {COMMANDS[command]} import main; main()"
        result = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], env={**os.environ, **folders, **settings, **iterations},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        with (self.root / "output.txt").open("a") as output:
            output.write(f"$ {command} {' '.join(map(str, arguments))}\n{result.stdout}\n")
        if result.returncode not in (0, 3):
            raise SystemExit(f"{command} ended with {result.returncode}:\n{result.stdout[-3000:]}")

    def select(self, selection: Selection) -> None:
        """Links the training cases to `raw/`, the images of the held-out ones to `held_out/`.

        Raises:
            SystemExit: when the dataset has too few cases.
        """
        source = self.source / selection.dataset
        dataset = json.loads((source / "dataset.json").read_text())
        ending = dataset["file_ending"]
        cases = sorted(path.name[: -len(ending)] for path in (source / "labelsTr").glob(f"*{ending}"))
        if len(cases) < selection.training + selection.held_out:
            raise SystemExit(
                f"{source}: {len(cases)} cases, expected {selection.training + selection.held_out} or more"
            )
        target = self.root / "raw" / selection.dataset
        shutil.rmtree(self.held_out(selection), ignore_errors=True)
        for case in cases[: selection.training]:
            _link(source / "imagesTr" / f"{case}_0000{ending}", target / "imagesTr")
            _link(source / "labelsTr" / f"{case}{ending}", target / "labelsTr")
        for case in cases[-selection.held_out :]:
            _link(source / "imagesTr" / f"{case}_0000{ending}", self.held_out(selection))
        (target / "dataset.json").write_text(json.dumps({**dataset, "numTraining": selection.training}, indent=2))

    def train(self, selections: Sequence[Selection]) -> None:
        """Pretrains one encoder on the training cases of all datasets, then trains one fold of each; resumes."""
        for name in ("raw", "preprocessed", "results"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for selection in selections:
            self.select(selection)
        numbers = [selection.number for selection in selections]
        if not (self.root / "results" / "swinfuse" / "encoder.pth").is_file():
            self.run("swinfuse_pretrain", "-d", *numbers, *PRETRAINING)
        for selection in selections:
            if (self.model(selection) / f"fold_{FOLD}" / "checkpoint_final.pth").is_file():
                continue
            options = ["-gpu_memory_target", MEMORY, "-overwrite_plans_name", PLANS, "-np", 1, "-npfp", 1, "--no_pbar"]
            if selection.spacing:
                options += ["-overwrite_target_spacing", *selection.spacing]
            self.run("swinfuse_plan_and_preprocess", "-d", selection.number, "-c", CONFIGURATION, *options)
            names = (selection.number, CONFIGURATION, FOLD, "-tr", TRAINER, "-p", PLANS)
            self.run("swinfuse_train", *names, "-device", "cpu")

    def model(self, selection: Selection) -> Path:
        """The folder of a trained model."""
        return self.root / "results" / selection.dataset / f"{TRAINER}__{PLANS}__{CONFIGURATION}"

    def held_out(self, selection: Selection) -> Path:
        """The folder of images that were not trained on."""
        return self.root / "held_out" / selection.dataset


def _link(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / file.name
    if not link.is_symlink():
        link.symlink_to(file.resolve(strict=True))
