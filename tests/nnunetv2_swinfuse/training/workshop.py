"""Tiny nnU-Net datasets, planned and preprocessed by nnU-Net, a tiny encoder, and trainers for them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder, save_encoder
from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture
from nnunetv2_swinfuse.architecture.tensor_names import pretrained_decoder
from nnunetv2_swinfuse.discovery.register import external_trainers_folder
from tests.threads import use_threads

CASES, SIZE = 5, 24
PLAIN, REGIONS = "Dataset901_Plain", "Dataset902_Regions"
TRAINER = "nnUNetTrainerSwinFUSE_1epoch"
SETTINGS = EncoderSettings(
    feature_size=12,
    depths=(1, 1),
    num_heads=(2, 4),
    window_size=3,
    domain_invariance={"layers": 1, "max_cells": 64, "mlp_ratio": 2.0},
)
RESIDUAL = EncoderSettings(
    feature_size=8,
    depths=(1, 2),
    num_heads=(2,),
    domain_invariance={"layers": 1, "max_cells": 64, "mlp_ratio": 2.0},
    backbone="resenc",
)


@dataclass(frozen=True)
class Workshop:
    """nnU-Net's three folders."""

    raw: Path
    preprocessed: Path
    results: Path

    @property
    def encoder(self) -> Path:
        """Where swinfuse_pretrain publishes."""
        return self.results / "swinfuse" / "encoder.pth"

    def model(self, trainer: str = TRAINER, dataset: str = PLAIN, configuration: str = "3d_fullres") -> Path:
        return self.results / dataset / f"{trainer}__nnUNetPlans__{configuration}"

    def checkpoint(self, fold: int = 0, name: str = "checkpoint_final.pth", **model: str) -> dict:
        """What a checkpoint of a model holds."""
        return torch.load(self.model(**model) / f"fold_{fold}" / name, map_location="cpu", weights_only=True)

    def configurations(self, **model: str) -> dict:
        """The configurations in the plans.json of a model."""
        return json.loads((self.model(**model) / "plans.json").read_text())["configurations"]

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in [name for name in os.environ if name.startswith("SWINFUSE_")]:
            monkeypatch.delenv(variable)
        monkeypatch.setenv("nnUNet_raw", str(self.raw))
        monkeypatch.setenv("nnUNet_preprocessed", str(self.preprocessed))
        monkeypatch.setenv("nnUNet_results", str(self.results))
        monkeypatch.setenv("nnUNet_extTrainer", str(external_trainers_folder()))
        # Augmentation in this process. (Planning needs 1: nnU-Net hands the number to torch.set_num_threads.)
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        monkeypatch.setenv("SWINFUSE_ITERATIONS_PER_EPOCH", "2")
        monkeypatch.setenv("SWINFUSE_VALIDATION_ITERATIONS_PER_EPOCH", "1")
        # nnU-Net draws progress.png after each epoch, which takes longer than such an epoch; model zips need the file.
        monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda _, folder: Path(folder, "progress.png").touch())


def write_dataset(folder: Path, labels: dict, ignore: bool = False, **entries) -> None:
    """Two nested cuboids in noise; with `ignore` a slab of unknown labels."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    files = {}
    for case in range(CASES):
        generator = np.random.default_rng(case)
        label = np.zeros((SIZE,) * 3, np.uint8)
        z, y, x = generator.integers(3, 8, 3)
        label[z : z + 12, y : y + 12, x : x + 12] = 1
        label[z + 4 : z + 9, y + 4 : y + 9, x + 4 : x + 9] = 2
        image = 100.0 * label + generator.normal(0, 10, label.shape)
        if ignore:
            label[:2] = 3
        paths = {"images": [f"imagesTr/case_{case}_0000.nii.gz"], "label": f"labelsTr/case_{case}.nii.gz"}
        sitk.WriteImage(sitk.GetImageFromArray(image.astype(np.float32)), str(folder / paths["images"][0]))
        sitk.WriteImage(sitk.GetImageFromArray(label), str(folder / paths["label"]))
        files[f"case_{case}"] = paths
    content = {
        "channel_names": {"0": "MR"},
        "labels": labels,
        "numTraining": CASES,
        "file_ending": ".nii.gz",
        "dataset": files,
        **entries,
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def publish_encoder(
    path: Path,
    seed: int = 0,
    settings: EncoderSettings = SETTINGS,
    halvings: int = 3,
    whole: bool = False,
    **network_settings: int,
) -> Encoder:
    """An encoder of random weights, as a pretraining run would leave it, and its copy in the run's own folder."""
    torch.manual_seed(seed)
    architecture = plans_architecture([[1, 1, 1], *[[2, 2, 2]] * halvings], settings, **network_settings)
    network = build_network(architecture, 1, 2)
    weights = {k: v for k, v in network.state_dict().items() if k.startswith(("patch_embed.", "encoder."))}
    source = path.parent / f"run_{seed}" / "encoder.pth"
    encoder = Encoder(
        weights,
        settings,
        network.topology.strides,
        modalities=("CT", "MR"),
        collection={"name": "Synthetic", "hash": f"{seed:064d}"},
        source=str(source),
        decoder_weights=pretrained_decoder(dict(network.named_parameters())) if whole else {},
    )
    save_encoder(encoder, source)
    shutil.copyfile(source, path)
    return encoder


def prepare_datasets(root: Path) -> Workshop:
    """Writes, plans and preprocesses two datasets and publishes an encoder."""
    workshop = Workshop(*(root / name for name in ("raw", "preprocessed", "results")))
    write_dataset(workshop.raw / PLAIN, {"background": 0, "shell": 1, "core": 2})
    write_dataset(
        workshop.raw / REGIONS,
        {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        ignore=True,
        regions_class_order=[1, 2],
    )
    publish_encoder(workshop.encoder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        workshop.use(monkeypatch)
        use_threads(monkeypatch)
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")
        extract_fingerprints([901], num_processes=1, verbose=False, show_progress_bar=False)
        plan_experiments([901])
        preprocess([901], configurations=["3d_fullres"], num_processes=[1], show_progress_bar=False)
        plans_file = workshop.preprocessed / PLAIN / "nnUNetPlans.json"
        plans = json.loads(plans_file.read_text())
        # Volumes this small get no cascade from the planner; the same voxels serve both of its stages here.
        plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
        plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        plans_file.write_text(json.dumps(plans))
        preprocess_like(workshop, PLAIN, REGIONS)
    return workshop


def preprocess_like(workshop: Workshop, planned: str, dataset: str) -> None:
    """Preprocesses a dataset with the plans of another in this process (nnU-Net starts one for each dataset)."""
    source, target = workshop.preprocessed / planned, workshop.preprocessed / dataset
    target.mkdir()
    plans = {**json.loads((source / "nnUNetPlans.json").read_text()), "dataset_name": dataset}
    (target / "nnUNetPlans.json").write_text(json.dumps(plans))
    shutil.copyfile(source / "dataset_fingerprint.json", target / "dataset_fingerprint.json")
    shutil.copyfile(workshop.raw / dataset / "dataset.json", target / "dataset.json")
    dataset_json = json.loads((target / "dataset.json").read_text())
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    folder = target / configuration.data_identifier
    folder.mkdir()
    for case, files in dataset_json["dataset"].items():
        images = [str(workshop.raw / dataset / image) for image in files["images"]]
        label = str(workshop.raw / dataset / files["label"])
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / case), images, label, manager, configuration, dataset_json
        )


def make_trainer(trainer: str = TRAINER, dataset: str = "901", configuration: str = "3d_fullres", fold: int = 0):
    """As nnUNetv2_train makes it, found by nnU-Net's own search."""
    return get_trainer_from_args(dataset, configuration, fold, trainer, device=torch.device("cpu"))
