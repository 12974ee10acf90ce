import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_swinfuse.benchmark import unseen_modality
from nnunetv2_swinfuse.benchmark.cell_run import FINAL
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.unseen_modality import (
    TABLE,
    add_rows,
    common_classes,
    common_orientation,
    dice_of_case,
    format_comparison,
    format_means,
    main,
    pairs_to_test,
    read_oriented,
    read_table,
)
from nnunetv2_swinfuse.errors import BenchmarkError
from tests.nnunetv2_swinfuse.training.workshop import PLAIN

from .runners import make_runner
from .tables import DATASET

OTHER = "Dataset902_Other"


def reoriented(source, target, code):
    """The same volume stored with other axes."""
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(source)), code), str(target))
    return target


def test_a_volume_is_brought_to_a_code_and_its_spacing_with_it(tmp_path):
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    voxels, spacing = read_oriented(tmp_path / "a.nii.gz", "RAS")
    np.testing.assert_array_equal(voxels, np.arange(24).reshape(2, 3, 4)[:, ::-1, ::-1])
    assert spacing == (3.0, 2.0, 1.0)
    sagittal = reoriented(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "PIR")
    np.testing.assert_array_equal(read_oriented(sagittal, "LPS")[0], sitk.GetArrayFromImage(image))
    assert read_oriented(sagittal, "LPS")[1] == (3.0, 2.0, 1.0)
    assert common_orientation([tmp_path / "a.nii.gz", sagittal, sagittal]) == "PIR"


def test_classes_are_matched_by_name():
    trained = {"background": 0, "liver": 1, "kidney_right": 2, "spleen": 3, "ignore": 4}
    tested = {"background": 0, "Spleen": 1, "Right kidney": 5, "ignore": 6, "whole": [1, 5]}
    assert common_classes(trained, tested) == {"kidney_right": (2, 5), "spleen": (3, 1)}
    assert common_classes({"background": 0, "tumour": 1}, tested) == {}


@pytest.mark.slow
def test_dice_does_not_depend_on_how_the_other_dataset_stores_images_and_numbers_classes(trained, tmp_path):
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained.model()), (0,), FINAL)
    raw = trained.raw / PLAIN
    image, label = raw / "imagesTr" / "case_0_0000.nii.gz", raw / "labelsTr" / "case_0.nii.gz"
    code = common_orientation([image])
    # A reference that is the model's own prediction, but for its upper half.
    prediction = predictor.predict_single_npy_array(
        sitk.GetArrayFromImage(sitk.ReadImage(str(image)))[None], {"spacing": [1.0, 1.0, 1.0]}
    )
    assert {1, 2} <= set(np.unique(prediction))
    reference = prediction.copy()
    reference[: len(reference) // 2] = 0
    written = sitk.GetImageFromArray(reference)
    written.CopyInformation(sitk.ReadImage(str(label)))
    sitk.WriteImage(written, str(tmp_path / "reference.nii.gz"))
    same = {"shell": (1, 1), "core": (2, 2)}
    plain = dict(dice_of_case(predictor, [image], tmp_path / "reference.nii.gz", code, same))
    for name, value in (("shell", 1), ("core", 2)):
        ours, theirs = prediction == value, reference == value
        assert plain[name] == pytest.approx(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    turned = reoriented(image, tmp_path / "image.nii.gz", "PIR")
    swapped = sitk.GetImageFromArray(np.array([0, 2, 1], np.uint8)[reference.astype(int)])
    swapped.CopyInformation(written)
    sitk.WriteImage(sitk.DICOMOrient(swapped, "PIR"), str(tmp_path / "swapped.nii.gz"))
    other = {"shell": (1, 2), "core": (2, 1)}
    assert dict(dice_of_case(predictor, [turned], tmp_path / "swapped.nii.gz", code, other)) == plain
    absent = sitk.GetImageFromArray(np.zeros_like(reference))
    absent.CopyInformation(written)
    sitk.WriteImage(absent, str(tmp_path / "absent.nii.gz"))
    nothing = dict(dice_of_case(predictor, [image], tmp_path / "absent.nii.gz", code, {"shell": (1, 1), "no": (9, 9)}))
    assert nothing["shell"] == 0
    assert np.isnan(nothing["no"])


def rows(arm, difference, seeds=(0, 1, 2), cases=4):
    """Dice of 0.5, more in every second case, and a known difference."""
    return [
        {
            "cell": f"{arm}__{seed}", "arm": arm, "dataset": "A", "tested_on": "B", "labels": "4", "seed": seed,
            "fold": 0, "case": f"case_{case}", "class": name, "dice": 0.5 + 0.1 * (case % 2) + difference + shift,
        }
        for seed in seeds
        for case in range(cases)
        for name, shift in (("liver", 0.1), ("spleen", -0.1))
    ]  # fmt: skip


def test_means_and_differences_are_those_of_a_table_with_a_known_answer(tmp_path):
    add_rows(tmp_path / TABLE, rows("scratch", 0.0))
    add_rows(tmp_path / TABLE, rows("swinfuse", 0.05))
    table = read_table(tmp_path / TABLE)
    assert len(table) == 2 * 3 * 4 * 2
    means = format_means(table)
    assert "| scratch  | 0.550 | 0.550, 0.550, 0.550 |" in means
    assert "| swinfuse | 0.600 |" in means
    compared = format_comparison(table, "swinfuse", "scratch")
    assert "+0.050 [+0.050, +0.050]" in compared
    with pytest.raises(BenchmarkError, match="no run of both"):
        format_comparison(table, "swinfuse", "nnunet")
    # Rows of a cell that was tested again replace the old ones.
    add_rows(tmp_path / TABLE, rows("swinfuse", 0.1, seeds=(0,)))
    assert len(read_table(tmp_path / TABLE)) == len(table)
    assert "0.650, 0.600, 0.600" in format_means(read_table(tmp_path / TABLE))


def test_a_single_run_has_no_interval(tmp_path):
    add_rows(tmp_path / TABLE, [*rows("scratch", 0.0, seeds=(0,)), *rows("swinfuse", 0.05, seeds=(0, 1))])
    compared = format_comparison(read_table(tmp_path / TABLE), "swinfuse", "scratch")
    assert "| +0.050 " in compared
    assert "[+0.0" not in compared


@pytest.fixture
def two_datasets(raw, tmp_path):
    """The raw dataset and one of the same cases with other names and numbers of classes; one model is there."""
    other = raw.parent / OTHER
    shutil.copytree(raw, other)
    content = json.loads((other / "dataset.json").read_text())
    write_json(other / "dataset.json", {**content, "labels": {"background": 0, "Core": 1, "Shell": 2}})
    runner = make_runner(tmp_path, datasets=[901, 902], arms=["nnunet"], seeds=[0])
    model = runner.cell_run(runner.cells[0]).model
    (model / "validation").mkdir(parents=True)
    (model / FINAL).touch()
    (model / "validation" / "summary.json").touch()
    return runner


def test_models_are_tested_on_the_other_datasets_only(two_datasets):
    ((cell, tested),) = pairs_to_test(two_datasets)
    assert (cell.dataset, tested.name) == (DATASET, OTHER)


def test_rows_are_added_once_and_the_tables_printed(two_datasets, monkeypatch, capsys):
    tested = []

    def dice(predictor, images, label, code, classes):
        tested.append(label.name)
        assert classes == {"shell": (1, 2), "core": (2, 1)}
        yield from ((name, 0.25) for name in classes)

    monkeypatch.setattr(unseen_modality, "dice_of_case", dice)
    monkeypatch.setattr(unseen_modality, "load_model", lambda run: SimpleNamespace())
    root = two_datasets.workspace.root
    experiment = root / "experiment.json"
    write_json(experiment, two_datasets.experiment.to_dict())
    main([str(experiment), "-o", str(root)])
    output = capsys.readouterr().out
    assert OTHER in output
    assert "0.250" in output
    (split,) = two_datasets.splits[OTHER].values()
    assert sorted(tested) == [f"{case}.nii.gz" for case in split.test]
    main([str(experiment), "-o", str(root)])
    assert len(tested) == len(split.test)


def test_an_experiment_without_models_is_refused(raw, tmp_path, capsys):
    runner = make_runner(tmp_path, arms=["nnunet"])
    experiment = runner.workspace.root / "experiment.json"
    write_json(experiment, runner.experiment.to_dict())
    with pytest.raises(SystemExit) as caught:
        main([str(experiment), "-o", str(runner.workspace.root)])
    assert caught.value.code == 2
    assert "run swinfuse_benchmark first" in capsys.readouterr().err
