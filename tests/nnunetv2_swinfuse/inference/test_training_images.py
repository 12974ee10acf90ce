import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.training_images import (
    CODES,
    RECORD,
    count_orientations,
    find_orientations,
    read_record,
    record,
)

from .synthetic_models import ct_voxels, write_image


def test_there_are_48_orientations():
    assert len(CODES) == 48


def test_images_are_counted_written_and_read(tmp_path):
    images = tmp_path / "imagesTr"
    for number, orientation in enumerate(("LPS", "LPS", "RAS")):
        write_image(images / f"{number}_0000.nii.gz", ct_voxels(shape=(4, 5, 6)), orientation=orientation)
    (images / "broken_0000.nii.gz").write_bytes(b"x")
    counts = count_orientations(images, ".nii.gz")
    assert counts == {"LPS": 2, "RAS": 1}
    (tmp_path / "r.json").write_bytes(record(counts))
    assert read_record(tmp_path / "r.json") == counts
    assert record(read_record(tmp_path / "r.json")) == (tmp_path / "r.json").read_bytes()
    assert read_record(tmp_path / "none.json") is None


def test_the_record_comes_before_the_training_images(tmp_path, monkeypatch):
    model, images = tmp_path / "m", tmp_path / "raw" / "Dataset900_Made" / "imagesTr"
    model.mkdir()
    assert find_orientations(model, "Dataset900_Made", ".nii.gz", 1) is None
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert find_orientations(model, "Dataset900_Made", ".nii.gz", 1) is None
    write_image(images / "a_0000.nii.gz", ct_voxels(shape=(4, 5, 6)), orientation="RAS")
    assert find_orientations(model, "Dataset900_Made", ".nii.gz", 1) == ({"RAS": 1}, images)
    assert find_orientations(model, "Dataset900_Made", ".mha", 1) is None
    # Another dataset of this name.
    assert find_orientations(model, "Dataset900_Made", ".nii.gz", 2) is None
    (model / RECORD).write_bytes(record({"LPS": 3}))
    assert find_orientations(model, "Dataset900_Made", ".nii.gz", 2) == ({"LPS": 3}, model / RECORD)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "x"},
        {"format_version": 2},
        {"orientations": {}},
        {"orientations": {"LLL": 1}},
        {"orientations": ["LPS"]},
        {"orientations": {"LPS": "x"}},
    ],
)
def test_other_records_are_refused(tmp_path, change):
    record = {"format": "swinfuse-training-images", "format_version": 1, "orientations": {"LPS": 1}, **change}
    (tmp_path / "r.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"r\.json: damaged or of another version"):
        read_record(tmp_path / "r.json")
