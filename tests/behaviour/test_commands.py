"""What follows training in nnU-Net: best configuration, ensembles with a stock model, postprocessing, prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args

from tests.nnunetv2_swinfuse.training.workshop import CASES, PLAIN, TRAINER, Workshop, publish_encoder
from tests.threads import use_threads

from .commands import nnunet, predict, train

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
STOCK = "nnUNetTrainer_1epoch"


@pytest.fixture(scope="module")
def models(nnunet_datasets, tmp_path_factory) -> Workshop:
    """Two folds of our trainer and one of nnU-Net's own, each with its validation's probabilities."""
    workshop = Workshop(
        nnunet_datasets.raw, nnunet_datasets.preprocessed, tmp_path_factory.mktemp("models") / "results"
    )
    workshop.results.mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        workshop.use(monkeypatch)
        use_threads(monkeypatch)
        publish_encoder(workshop.encoder)
        for fold in (0, 1):
            train(901, "3d_fullres", fold, TRAINER, "--npz")
        # As nnUNetv2_train, but for the 250 iterations of its own trainer's epoch.
        stock = get_trainer_from_args("901", "3d_fullres", 0, STOCK, device=CPU)
        stock.num_iterations_per_epoch, stock.num_val_iterations_per_epoch = 2, 1
        stock.run_training()
        stock.perform_actual_validation(save_probabilities=True)
    return workshop


@pytest.fixture(autouse=True)
def environment(models, monkeypatch):
    models.use(monkeypatch)
    use_threads(monkeypatch)


@pytest.fixture(scope="module")
def images(models, tmp_path_factory) -> Path:
    """Three of the images."""
    folder = tmp_path_factory.mktemp("images")
    for case in range(3):
        name = f"case_{case}_0000.nii.gz"
        (folder / name).symlink_to(models.raw / PLAIN / "imagesTr" / name)
    return folder


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}


def test_npz_leaves_probabilities_that_agree_with_the_masks(models):
    folder = models.model() / "fold_0" / "validation"
    (path,) = folder.glob("*.npz")
    probabilities = np.load(path)["probabilities"]
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-2)
    (mask,) = masks_in(folder).values()
    np.testing.assert_array_equal(probabilities.argmax(0), mask)


def test_the_best_configuration_ensembles_and_postprocesses_with_a_stock_model(models, images, tmp_path):
    nnunet("find_best_configuration", 901, "-c", "3d_fullres", "-tr", TRAINER, STOCK, "-f", 0, "-np", 1)
    results = models.results / PLAIN
    result = json.loads((results / "inference_information.json").read_text())
    assert len(result["considered_models"]) == 2
    (ensemble,) = (results / "ensembles").glob("ensemble___*")
    assert TRAINER in ensemble.name
    assert STOCK in ensemble.name
    assert "nnUNetv2_predict" in (results / "inference_instructions.txt").read_text()
    for name in (TRAINER, STOCK):
        predict(901, "3d_fullres", name, images, tmp_path / name, "--save_probabilities")
    nnunet("ensemble", "-i", tmp_path / TRAINER, tmp_path / STOCK, "-o", tmp_path / "both", "-np", 1)
    both = masks_in(tmp_path / "both")
    ours, theirs = (
        {path.stem: np.load(path)["probabilities"] for path in (tmp_path / name).glob("*.npz")}
        for name in (TRAINER, STOCK)
    )
    assert len(both) == len(ours) == 3
    for case, probabilities in ours.items():
        mean = (probabilities.astype(np.float32) + theirs[case].astype(np.float32)) / 2
        np.testing.assert_array_equal(both[f"{case}.nii.gz"], mean.argmax(0))
    best = result["best_model_or_ensemble"]
    how = ("-pp_pkl_file", best["postprocessing_file"], "-plans_json", best["some_plans_file"])
    nnunet("apply_postprocessing", "-i", tmp_path / "both", "-o", tmp_path / "post", *how, "-np", 1)
    assert masks_in(tmp_path / "post").keys() == both.keys()


def test_postprocessing_is_determined_from_our_predictions(models):
    folder = models.model() / "fold_0" / "validation"
    reference = models.raw / PLAIN / "labelsTr"
    files = ("-plans_json", models.model() / "plans.json", "-dataset_json", models.model() / "dataset.json")
    nnunet("determine_postprocessing", "-i", folder, "-ref", reference, *files, "-np", 1)
    assert (folder / "postprocessing.pkl").is_file()


def test_parts_share_the_images_and_agree_with_the_whole(images, tmp_path):
    predict(901, "3d_fullres", TRAINER, images, tmp_path / "whole")
    for part in (0, 1):
        # Without processes (-npp 0 -nps 0) nnU-Net predicts all images and does not say so.
        options = ("-num_parts", 2, "-part_id", part, "-npp", 1, "-nps", 1)
        predict(901, "3d_fullres", TRAINER, images, tmp_path / str(part), *options)
    parts = [masks_in(tmp_path / str(part)) for part in (0, 1)]
    assert [len(masks) for masks in parts] == [2, 1]
    whole = masks_in(tmp_path / "whole")
    assert whole.keys() == parts[0].keys() | parts[1].keys()
    for masks in parts:
        for name, mask in masks.items():
            np.testing.assert_array_equal(mask, whole[name])


def predictor_of(models: Workshop, folds: tuple[int, ...] | None) -> nnUNetPredictor:
    predictor = nnUNetPredictor(use_mirroring=False, device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(models.model()), folds)
    return predictor


def test_files_arrays_and_folds_in_python(models, images, tmp_path):
    predict(901, "3d_fullres", TRAINER, images, tmp_path / "command", "-f", 0, 1)
    expected = masks_in(tmp_path / "command")
    predictor = predictor_of(models, None)
    assert len(predictor.list_of_parameters) == 2
    files = sorted(images.glob("*_0000.nii.gz"))
    returned = predictor.predict_from_files([[str(path)] for path in files], None, False, True, 1, 1)
    arrays = [SimpleITKIO().read_images([str(path)]) for path in files]
    listed = predictor.predict_from_list_of_npy_arrays(
        [array for array, _ in arrays], None, [properties for _, properties in arrays], None, 1, False, 1
    )
    single = [predictor.predict_single_npy_array(array, properties, None, None) for array, properties in arrays]
    for name, *masks in zip(expected, returned, listed, single, strict=True):
        for mask in masks:
            np.testing.assert_array_equal(mask, expected[name])


def test_several_folds_are_averaged_not_one_of_them(models, images):
    array, properties = SimpleITKIO().read_images([str(images / "case_0_0000.nii.gz")])
    logits = {}
    for folds in ((0,), (1,), (0, 1)):
        predictor = predictor_of(models, folds)
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        data, *_ = preprocessor.run_case_npy(
            array, None, properties, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        )
        logits[folds] = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).float()
    assert not torch.allclose(logits[(0,)], logits[(1,)])
    torch.testing.assert_close(logits[(0, 1)], (logits[(0,)] + logits[(1,)]) / 2, atol=2e-2, rtol=1e-2)


def test_a_model_zip_predicts_elsewhere(models, images, tmp_path, monkeypatch):
    archive = tmp_path / "model.zip"
    model_options = ("-d", PLAIN, "-c", "3d_fullres", "-tr", TRAINER, "-p", "nnUNetPlans", "-f", 0, 1)
    nnunet("export_model_to_zip", *model_options, "-o", archive)
    predict(901, "3d_fullres", TRAINER, images, tmp_path / "here", "-f", 0, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("nnUNet_results", str(elsewhere))
    monkeypatch.delenv("nnUNet_extTrainer")
    nnunet("install_pretrained_model_from_zip", archive)
    predict(901, "3d_fullres", TRAINER, images, tmp_path / "there", "-f", 0, 1)
    here, there = masks_in(tmp_path / "here"), masks_in(tmp_path / "there")
    assert here.keys() == there.keys()
    assert all(np.array_equal(here[name], there[name]) for name in here)


def test_validation_with_the_best_checkpoint_and_training_without_any(models):
    train(901, "3d_fullres", 0, TRAINER, "--val", "--val_best")
    train(901, "3d_fullres", 4, TRAINER, "--disable_checkpointing")
    fold = models.model() / "fold_4"
    assert (fold / "validation" / "summary.json").is_file()
    assert not list(fold.glob("*.pth"))


def test_every_fold_has_its_own_validation_case(models):
    cases = {path.name for fold in (0, 1) for path in (models.model() / f"fold_{fold}" / "validation").glob("*.nii.gz")}
    assert len(cases) == 2 <= CASES
