import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunetv2_swinfuse.benchmark.metrics import diagonal, measure_folder, surface_measures
from nnunetv2_swinfuse.errors import BenchmarkError

SPACING = (2.0, 1.0, 1.0)
LABELS = {"background": 0, "shell": 1, "core": 2}


def cuboid(start, size=8, shape=(16, 20, 20), value=1):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(at, at + size) for at in start)] = value
    return mask


def write(path: Path, array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(path))


def evaluated(root: Path, cases, labels=(1, 2), ignore=None) -> Path:
    """A validation folder with the summary that nnU-Net's own functions write."""
    entries = []
    for name, (reference, prediction) in cases.items():
        files = root / "references" / f"{name}.nii.gz", root / "validation" / f"{name}.nii.gz"
        for path, array in zip(files, (reference, prediction), strict=True):
            write(path, array)
        entries.append(compute_metrics(*map(str, files), SimpleITKIO(), list(labels), ignore))
    for entry in entries:
        recursive_fix_for_json_export(entry)
    folder = root / "validation"
    save_summary_json({"metric_per_case": entries, "mean": {}, "foreground_mean": {}}, str(folder / "summary.json"))
    return folder


def measure(folder, labels=LABELS, **entries):
    rows = list(measure_folder(folder, {"labels": labels, "file_ending": ".nii.gz", **entries}, 1.0))
    return {(row["case"], row["class"], row["metric"]): (row["value"], row["empty"]) for row in rows}


def test_dice_is_nnunets_and_the_rest_has_closed_forms(tmp_path):
    # The same cuboid, three voxels of 1 mm further along x.
    folder = evaluated(tmp_path, {"a": (cuboid((4, 4, 4)), cuboid((4, 4, 7)))}, labels=(1,))
    found = measure(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert found["a", "shell", "Dice"] == (summary["metric_per_case"][0]["metrics"]["1"]["Dice"], "")
    assert found["a", "shell", "Dice"][0] == pytest.approx(5 / 8)
    # The faces across x are 3 mm apart; more than 5 % of the surface.
    assert found["a", "shell", "HD95"][0] == pytest.approx(3.0)
    assert found["a", "shell", "VolumeError"] == (0.0, "")
    assert 0 < found["a", "shell", "SurfaceDice"][0] < 1


def test_spacing_counts_along_its_axis(tmp_path):
    # One voxel along z is 2 mm.
    found = measure(evaluated(tmp_path, {"a": (cuboid((4, 4, 4)), cuboid((5, 4, 4)))}, labels=(1,)))
    assert found["a", "shell", "HD95"][0] == pytest.approx(2.0)


def test_volume_error_in_ml(tmp_path):
    found = measure(evaluated(tmp_path, {"a": (cuboid((4, 4, 4)), cuboid((4, 4, 4), size=6))}, labels=(1,)))
    assert found["a", "shell", "VolumeError"][0] == pytest.approx((8**3 - 6**3) * 2 / 1000)


def test_perfect(tmp_path):
    found = measure(evaluated(tmp_path, {"a": (cuboid((4, 4, 4)), cuboid((4, 4, 4)))}, labels=(1,)))
    assert [found["a", "shell", name][0] for name in ("Dice", "HD95", "SurfaceDice", "VolumeError")] == [1, 0, 1, 0]


def test_empty_classes_are_named_and_given_the_worst_value(tmp_path):
    nothing = np.zeros((16, 20, 20), np.uint8)
    full = cuboid((4, 4, 4))
    cases = {"both": (nothing, nothing), "missed": (full, nothing), "invented": (nothing, full)}
    found = measure(evaluated(tmp_path, cases, labels=(1,)))
    worst = diagonal((16, 20, 20), SPACING)
    assert worst == pytest.approx((32**2 + 20**2 + 20**2) ** 0.5)
    for name in ("missed", "invented"):
        assert found[name, "shell", "Dice"] == (0.0, name)
        assert found[name, "shell", "HD95"] == (worst, name)
        assert found[name, "shell", "SurfaceDice"] == (0.0, name)
        assert found[name, "shell", "VolumeError"] == (pytest.approx(8**3 * 2 / 1000), name)
    for metric in ("Dice", "HD95", "SurfaceDice"):
        value, empty = found["both", "shell", metric]
        assert np.isnan(value)
        assert empty == "both"


def test_ignored_voxels_are_in_no_mask(tmp_path):
    reference, prediction = cuboid((4, 4, 4)), cuboid((4, 4, 4))
    reference[4:8] = 3
    folder = evaluated(tmp_path, {"a": (reference, prediction)}, labels=(1,), ignore=3)
    found = measure(folder, {"background": 0, "shell": 1, "ignore": 3})
    assert [found["a", "shell", name][0] for name in ("Dice", "HD95", "SurfaceDice", "VolumeError")] == [1, 0, 1, 0]


def test_regions(tmp_path):
    reference = cuboid((4, 4, 4)) + cuboid((6, 6, 6), size=4)
    prediction = cuboid((4, 4, 4))
    folder = evaluated(tmp_path, {"a": (reference, prediction)}, labels=((1, 2), (2,)))
    found = measure(folder, {"background": 0, "whole": [1, 2], "core": [2]})
    assert found["a", "whole", "Dice"] == (1.0, "")
    assert found["a", "core", "Dice"] == (0.0, "missed")


def test_masks_that_changed_after_the_evaluation_are_refused(tmp_path):
    folder = evaluated(tmp_path, {"a": (cuboid((4, 4, 4)), cuboid((4, 4, 4)))}, labels=(1,))
    write(folder / "a.nii.gz", cuboid((4, 4, 4), size=5))
    with pytest.raises(BenchmarkError, match=r"class 1 has 125 voxels .* the masks changed"):
        measure(folder)


def test_a_validation_that_did_not_finish(tmp_path):
    with pytest.raises(BenchmarkError, match="did not finish"):
        measure(tmp_path)


def test_surface_dice_depends_on_its_tolerance():
    masks = cuboid((4, 4, 4)).astype(bool), cuboid((4, 4, 6)).astype(bool)
    assert surface_measures(*masks, SPACING, 2.5)[1] == 1.0
    assert surface_measures(*masks, SPACING, 0.5)[1] < 1.0


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "surface_distance", None)
    with pytest.raises(BenchmarkError, match=r'is not installed: .*pip install "\.\[benchmark\]" in a checkout'):
        surface_measures(*[cuboid((4, 4, 4)).astype(bool)] * 2, SPACING, 1.0)
