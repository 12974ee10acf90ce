from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from nnunetv2_swinfuse.benchmark.cell_run import FINAL
from nnunetv2_swinfuse.benchmark.other_dataset import (
    common_classes,
    common_orientation,
    dice_of_case,
    model_orientation,
    read_case,
    rescaled,
)
from nnunetv2_swinfuse.errors import BenchmarkError
from tests.nnunetv2_swinfuse.training.workshop import PLAIN


def reoriented(source, target, code):
    """The same volume stored with other axes."""
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(source)), code), str(target))
    return target


@pytest.fixture
def volume(tmp_path):
    """A ramp whose value says where it is, and a label with the same voxels and no direction of its own."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    flipped = sitk.DICOMOrient(image, "PIR")
    sitk.WriteImage(flipped, str(tmp_path / "flipped.nii.gz"))
    label = sitk.GetImageFromArray(sitk.GetArrayFromImage(flipped).astype(np.uint8))
    sitk.WriteImage(label, str(tmp_path / "label.nii.gz"))
    return array


def test_a_case_is_brought_to_a_code_and_its_label_goes_with_the_image(volume, tmp_path):
    flipped = tmp_path / "flipped.nii.gz"
    channels, spacing, label = read_case([flipped, flipped], tmp_path / "label.nii.gz", "LPS")
    np.testing.assert_array_equal(channels, [volume, volume])
    np.testing.assert_array_equal(label, volume)
    assert spacing == (3.0, 2.0, 1.0)
    channels, _, label = read_case([flipped], tmp_path / "label.nii.gz", "RAS")
    np.testing.assert_array_equal(channels[0], volume[:, ::-1, ::-1])
    np.testing.assert_array_equal(label, volume[:, ::-1, ::-1])
    with pytest.raises(BenchmarkError, match=r"label.nii.gz: its size is"):
        read_case([tmp_path / "image.nii.gz"], tmp_path / "label.nii.gz", "RAS")


def test_the_orientation_is_that_of_the_arrays_a_model_was_trained_on(volume, tmp_path):
    images = [tmp_path / "image.nii.gz", tmp_path / "flipped.nii.gz", tmp_path / "flipped.nii.gz"]
    assert common_orientation(images) == "PIR"

    def model(reader):
        return SimpleNamespace(plans_manager=SimpleNamespace(plans={"image_reader_writer": reader}))

    assert model_orientation(model("SimpleITKIO"), images) == "PIR"
    assert model_orientation(model("SimpleITKIOWithReorient"), images) == "RAS"
    with pytest.raises(BenchmarkError, match="read by Tiff3DIO"):
        model_orientation(model("Tiff3DIO"), images)


def test_classes_are_matched_by_name():
    trained = {"background": 0, "liver": 1, "kidney_right": 2, "spleen": 3, "ignore": 4}
    tested = {"background": 0, "Spleen": 1, "Right kidney": 5, "ignore": 6, "whole": [1, 5]}
    assert common_classes(trained, tested) == {"kidney_right": (2, 5), "spleen": (3, 1)}
    assert common_classes({"background": 0, "tumour": 1}, tested) == {}
    assert common_classes({"background": 0, "肝臓": 1}, {"background": 0, "脾臓": 1}) == {}
    assert common_classes({"background": 0, "whole": [1, 2], "spleen": 2}, tested) == {}


def model_of(schemes, **properties):
    """A model with normalisation schemes, and intensity properties of its first channel."""
    return SimpleNamespace(
        configuration_manager=SimpleNamespace(normalization_schemes=schemes),
        plans_manager=SimpleNamespace(foreground_intensity_properties_per_channel={"0": properties}),
    )


def test_ct_is_clipped_to_soft_tissue_for_a_model_of_mr_and_mr_stays():
    voxels = np.array([[[[-1000, -160, 40, 240, 3000]]], [[[-1000, 0, 1, 2, 3000]]]], np.float32)
    model = model_of(["ZScoreNormalization", "ZScoreNormalization"])
    result = rescaled(voxels, model, ["ct", "T1"])
    assert result[0].ravel().tolist() == [-160, -160, 40, 240, 240]
    np.testing.assert_array_equal(result[1], voxels[1])
    # The image of the caller is as it was, and a model of CT has its own limits.
    assert voxels.min() == -1000
    np.testing.assert_array_equal(rescaled(voxels, model_of(["CTNormalization"] * 2), ["CT", "CT"]), voxels)


def test_a_model_of_ct_sees_mr_in_standard_deviations():
    properties = {"mean": 90.0, "std": 50.0, "percentile_00_5": -60.0, "percentile_99_5": 240.0}
    voxels = np.random.default_rng(0).gamma(2.0, 300.0, (1, 6, 7, 8)).astype(np.float32)
    result = rescaled(voxels, model_of(["CTNormalization"], **properties), ["MR"])
    normalised = CTNormalization(False, properties).run(result[0].copy())
    standard = (voxels[0] - voxels.mean()) / voxels.std()
    np.testing.assert_allclose(normalised, standard.clip(-3, 3), atol=1e-4)
    # As it is, it would be clipped at a HU that most of it exceeds.
    assert (voxels > 240).mean() > 0.5


@pytest.mark.slow
def test_dice_does_not_depend_on_how_the_other_dataset_stores_images_and_numbers_classes(trained, tmp_path):
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained.model()), (0,), FINAL)
    raw = trained.raw / PLAIN
    image, label = raw / "imagesTr" / "case_0_0000.nii.gz", raw / "labelsTr" / "case_0.nii.gz"
    code = common_orientation([image])
    # A reference that is the model's own prediction, but for its upper half.
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(image)))[None]
    prediction = predictor.predict_single_npy_array(voxels, {"spacing": [1.0, 1.0, 1.0]})
    assert {1, 2} <= set(np.unique(prediction))
    reference = prediction.astype(np.uint8)
    reference[: len(reference) // 2] = 0

    def write(array, name, axes="LPS"):
        written = sitk.GetImageFromArray(array)
        written.CopyInformation(sitk.ReadImage(str(label)))
        sitk.WriteImage(sitk.DICOMOrient(written, axes), str(tmp_path / name))
        return tmp_path / name

    def values(*arguments):
        return {row["class"]: row["value"] for row in dice_of_case(predictor, *arguments)}

    plain = values([image], write(reference, "reference.nii.gz"), code, {"shell": (1, 1), "core": (2, 2)})
    for name, value in (("shell", 1), ("core", 2)):
        ours, theirs = prediction == value, reference == value
        assert plain[name] == pytest.approx(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    turned = reoriented(image, tmp_path / "image.nii.gz", "PIR")
    swapped = write(np.array([0, 2, 1], np.uint8)[reference], "swapped.nii.gz", "PIR")
    assert values([turned], swapped, code, {"shell": (1, 2), "core": (2, 1)}) == plain
    # Nothing is wrong where nothing counts, and a class that neither has has no Dice.
    reference[: len(reference) // 2] = 7
    classes = {"shell": (1, 1), "none": (9, 9)}
    ignored = write(reference, "ignored.nii.gz")
    rows = list(dice_of_case(predictor, [image], ignored, code, classes, 7))
    assert [row["value"] for row in rows[:1]] == [1.0]
    assert np.isnan(rows[1]["value"])
    assert [row["empty"] for row in rows] == ["", "both"]
    # An image of the model's own modality has its scale already.
    same = list(dice_of_case(predictor, [image], ignored, code, classes, 7, ["MR"]))
    assert [row["value"] for row in same[:1]] == [1.0]
