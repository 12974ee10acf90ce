"""nnU-Net's console commands in this process: the same entry points, without a Python start for each."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import pytest


def nnunet(command: str, *arguments: object) -> None:
    """Runs `nnUNetv2_COMMAND ARGUMENTS`, as installed."""
    (script,) = entry_points(group="console_scripts", name=f"nnUNetv2_{command}")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", [script.name, *map(str, arguments)])
        # Planning hands this number to torch.set_num_threads; training augments in this process with 0.
        monkeypatch.setenv("nnUNet_n_proc_DA", "0" if command == "train" else "1")
        script.load()()


def plan(dataset: int, *options: str) -> None:
    nnunet("plan_and_preprocess", "-d", dataset, "-npfp", 1, "--no_pp", *options)


def preprocess(dataset: int, *configurations: str, plans: str = "nnUNetPlans") -> None:
    plan_options = ("-plans_name", plans, "-c", *configurations)
    nnunet("preprocess", "-d", dataset, *plan_options, "-np", *[1] * len(configurations))


def train(dataset: int, configuration: str, fold: object, trainer_name: str, *options: str) -> None:
    nnunet("train", dataset, configuration, fold, "-tr", trainer_name, "-device", "cpu", *options)


def predict(
    dataset: int, configuration: str, trainer_name: str, images: object, output: object, *options: object
) -> None:
    """Without mirroring, in this process."""
    model_options = ("-d", dataset, "-c", configuration, "-tr", trainer_name, "-i", images, "-o", output)
    folds = () if "-f" in options else ("-f", 0)
    nnunet("predict", *model_options, *folds, "-device", "cpu", "--disable_tta", "-npp", 0, "-nps", 0, *options)
