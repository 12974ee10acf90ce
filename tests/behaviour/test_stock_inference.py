"""What was trained here predicts in stock nnU-Net, with nothing of the training side imported or found."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_swinfuse.training.trainer import nnUNetTrainerSwinFUSE
from tests.nnunetv2_swinfuse.training.workshop import PLAIN

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")

PREDICT = """
import os, sys
# A registered environment of the developer's must not help.
os.environ.pop("nnUNet_extTrainer", None)
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], (0,))
predictor.predict_from_files_sequential([[sys.argv[2]]], [sys.argv[3]])
parts = ("nnunetv2_swinfuse.training", "nnunetv2_swinfuse.discovery", "pretraining")
assert not [name for name in sys.modules if name.startswith(parts)]
"""


def predictor_of(model) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    return predictor


def test_a_process_that_knows_nothing_of_the_trainers_predicts(trained, tmp_path):
    import SimpleITK as sitk

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet", "SWINFUSE"))}
    image = trained.raw / PLAIN / "imagesTr" / "case_0_0000.nii.gz"
    arguments = [str(trained.model()), str(image), str(tmp_path / "mask")]
    result = subprocess.run(
        [sys.executable, "-c", PREDICT, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    read = sitk.ReadImage(str(image))
    assert (mask.GetSize(), mask.GetSpacing()) == (read.GetSize(), read.GetSpacing())
    assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}


# What nnU-Net's planner knows of a dataset: median shape and spacing (z, y, x, mm).
FINGERPRINTS = {
    "isotropic": ((80, 72, 76), (1.0, 1.0, 1.0)),
    "anisotropic": ((14, 112, 96), (5.0, 0.8, 0.8)),
    "small": ((36, 50, 35), (1.0, 1.0, 1.0)),
}


def default_plans(workshop, name, shape, spacing) -> tuple[dict, dict]:
    """nnU-Net's own planner on the fingerprint of a dataset of such volumes."""
    intensities = {"mean": 50.0, "median": 40.0, "std": 20.0, "min": 0.0, "max": 200.0}
    intensities |= {"percentile_99_5": 150.0, "percentile_00_5": 1.0}
    fingerprint = {
        "spacings": [list(spacing)] * 5,
        "shapes_after_crop": [list(shape)] * 5,
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 1.0,
    }
    dataset_json = json.loads((workshop.raw / PLAIN / "dataset.json").read_text())
    for files in dataset_json["dataset"].values():
        files["images"] = [str(workshop.raw / PLAIN / image) for image in files["images"]]
    for folder in (workshop.raw / name, workshop.preprocessed / name):
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    (workshop.preprocessed / name / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    ExperimentPlanner(name).plan_experiment()
    return json.loads((workshop.preprocessed / name / "nnUNetPlans.json").read_text()), dataset_json


@pytest.mark.parametrize("kind", FINGERPRINTS)
def test_default_plans_train_a_step_save_and_predict_under_stock_lookup(published, monkeypatch, tmp_path, kind):
    shape, spacing = FINGERPRINTS[kind]
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    raw.mkdir()
    (raw / PLAIN).symlink_to(published.raw / PLAIN)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    name = f"Dataset91{list(FINGERPRINTS).index(kind)}_{kind}"
    workshop = type(published)(raw, preprocessed, published.results)
    plans, dataset_json = default_plans(workshop, name, shape, spacing)
    configuration = plans["configurations"]["3d_fullres"]
    assert (configuration["patch_size"][0] < configuration["patch_size"][1] / 3) == (kind == "anisotropic")

    trainer = nnUNetTrainerSwinFUSE({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, CPU)
    (preprocessed / name / configuration["data_identifier"]).mkdir()
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.infer_dataset_class", lambda *_: None)
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    data = torch.randn(1, 1, *configuration["patch_size"])
    sizes = [o.shape[2:] for o in trainer.network(data)]
    targets = [torch.randint(0, 3, (1, 1, *size)).float() for size in sizes]
    scales = trainer._get_deep_supervision_scales()
    assert [tuple(size) for size in sizes] == [
        tuple(round(s * p) for s, p in zip(scale, configuration["patch_size"], strict=True)) for scale in scales
    ]
    loss = trainer.train_step({"data": data, "target": targets})["loss"]
    assert np.isfinite(loss)
    model = workshop.model("nnUNetTrainerSwinFUSE", name)
    trainer.save_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
    (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (model / "dataset.json").write_text(json.dumps(dataset_json))

    monkeypatch.delenv("nnUNet_extTrainer")
    predictor = predictor_of(model)
    predictor.use_mirroring = False
    assert predictor.trainer_name == "nnUNetTrainer"
    trained = trainer.network.state_dict()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in predictor.network.state_dict().items())
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    mask = predictor.predict_single_npy_array(image, {"spacing": list(spacing)}, None, None)
    assert mask.shape == shape
    assert set(np.unique(mask)) <= {0, 1, 2}
