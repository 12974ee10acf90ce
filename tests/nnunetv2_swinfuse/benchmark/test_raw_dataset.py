import json

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_swinfuse.benchmark.raw_dataset import describe_reoriented, find_dataset
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.nnunet_names import REORIENTING_READER
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.preprocessing.foreground import read_volume

from .tables import DATASET

SHAPE = (5, 6, 7)


def store(path, array, code):
    """Writes an array (z, y, x) whose axes are those of RAS, in another orientation, off the origin."""
    image = sitk.GetImageFromArray(array)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 5.0))
    sitk.WriteImage(sitk.DICOMOrient(image, code), str(path))


@pytest.fixture(params=["LAS", "PIR"])
def stored(raw, tmp_path, request):
    """Case 0 is a volume that no flip leaves as it is, with a corner as label, stored in that orientation."""
    voxels = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    label[:2, :3, :4] = 1
    store(raw / "imagesTr" / "case_000_0000.nii.gz", voxels, request.param)
    store(raw / "labelsTr" / "case_000.nii.gz", label, request.param)
    describe_reoriented(find_dataset(901), tmp_path / "own")
    return tmp_path / "own" / DATASET, voxels, label


def test_nnunet_finds_the_files_and_reads_them_as_pretraining_does(raw, stored):
    folder, voxels, label = stored
    content = json.loads((folder / "dataset.json").read_text())
    cases = get_filenames_of_train_images_and_targets(str(folder))
    theirs = get_filenames_of_train_images_and_targets(str(raw))
    assert cases == theirs
    assert content["labels"] == find_dataset(901).content["labels"]
    reader = determine_reader_writer_from_dataset_json(content, cases["case_000"]["images"][0], verbose=False)
    assert reader.__name__ == REORIENTING_READER
    read, _ = reader().read_images(cases["case_000"]["images"])
    np.testing.assert_array_equal(read[0], voxels)
    np.testing.assert_array_equal(read, read_volume(find_dataset(901).images["case_000"][0])[0])
    # As nnU-Net's preprocessing calls it, by the plans.
    plans = PlansManager(
        {**Normalisation((3.0, 2.0, 1.0), {}, False).plans(["MR"]), "image_reader_writer": REORIENTING_READER}
    )
    data, segmentation, _ = DefaultPreprocessor(verbose=False).run_case(
        cases["case_000"]["images"], cases["case_000"]["label"], plans, plans.get_configuration("swinfuse"), content
    )
    np.testing.assert_allclose(data[0], (voxels - voxels.mean()) / voxels.std(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(segmentation[0], label)


def test_predictions_are_written_as_the_files_are_and_evaluated_against_them(raw, stored, tmp_path):
    folder, _, label = stored
    case = get_filenames_of_train_images_and_targets(str(folder))["case_000"]
    content = json.loads((folder / "dataset.json").read_text())
    reader = determine_reader_writer_from_dataset_json(content, case["images"][0], verbose=False)()
    _, properties = reader.read_images(case["images"])
    prediction = label.copy()
    # Half of the corner.
    prediction[:1] = 0
    for segmentation, name, dice in ((label, "same", 1.0), (prediction, "half", 2 / 3)):
        path = tmp_path / f"{name}.nii.gz"
        reader.write_seg(segmentation, str(path), properties)
        metrics = compute_metrics(case["label"], str(path), reader, [1])
        assert metrics["metrics"][1]["Dice"] == pytest.approx(dice)
    written, reference = sitk.ReadImage(str(tmp_path / "same.nii.gz")), sitk.ReadImage(case["label"])
    # Voxel by voxel, for those who read it as stored.
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(reference))
    assert written.GetDirection() == pytest.approx(reference.GetDirection())
    assert written.GetOrigin() == pytest.approx(reference.GetOrigin())
    assert written.GetSpacing() == pytest.approx(reference.GetSpacing())


def test_labels_with_other_axes_than_their_image_are_refused(raw, tmp_path):
    store(raw / "labelsTr" / "case_003.nii.gz", np.zeros((2, 2, 2), np.uint8), "RAS")
    with pytest.raises(BenchmarkError, match=r"case_003: files of different orientation \(.*case_003_0000.nii.gz LPS"):
        describe_reoriented(find_dataset(901), tmp_path / "own")


def test_a_dataset_is_found_by_its_number(raw):
    dataset = find_dataset(901)
    assert (dataset.number, dataset.name, dataset.folder) == (901, DATASET, raw)
    assert len(dataset.images) == len(dataset.label) == 12
    assert dataset.images["case_003"] == (raw / "imagesTr" / "case_003_0000.nii.gz",)
    assert dataset.label["case_003"] == raw / "labelsTr" / "case_003.nii.gz"
    assert dataset.content["labels"]["core"] == 2


def test_a_missing_folder_of_datasets_is_named(monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(BenchmarkError, match="nnUNet_raw is not set or no folder"):
        find_dataset(901)


def test_a_dataset_without_its_description_is_refused(raw):
    (raw / "dataset.json").unlink()
    with pytest.raises(BenchmarkError, match=f"{DATASET}: not a dataset of nnU-Net"):
        find_dataset(901)
