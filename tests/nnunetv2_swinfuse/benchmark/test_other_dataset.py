from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_swinfuse.benchmark.cell_run import FINAL
from nnunetv2_swinfuse.benchmark.other_dataset import (
    common_classes,
    common_orientation,
    dice_of_case,
    model_orientation,
    read_case,
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
    rows = list(dice_of_case(predictor, [image], write(reference, "ignored.nii.gz"), code, classes, 7))
    assert [row["value"] for row in rows[:1]] == [1.0]
    assert np.isnan(rows[1]["value"])
    assert [row["empty"] for row in rows] == ["", "both"]
