import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.training_images import (
    CODES,
    orientations_of_dataset,
    read_record,
    write_record,
)

from .synthetic_models import ct_voxels, write_image


def test_there_are_48_orientations():
    assert len(CODES) == 48


def test_images_are_counted_written_and_read(tmp_path):
    images = tmp_path / "imagesTr"
    for number, orientation in enumerate(("LPS", "LPS", "RAS")):
        write_image(images / f"{number}_0000.nii.gz", ct_voxels(shape=(4, 5, 6)), orientation=orientation)
    (images / "broken_0000.nii.gz").write_bytes(b"x")
    assert orientations_of_dataset(images, ".nii.gz") == {"LPS", "RAS"}
    assert write_record(tmp_path / "r.json", images, ".nii.gz")
    assert json.loads((tmp_path / "r.json").read_text())["orientations"] == {"LPS": 2, "RAS": 1}
    assert read_record(tmp_path / "r.json") == {"LPS", "RAS"}
    assert not write_record(tmp_path / "none.json", images, ".mha")
    assert read_record(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "change", [{"format": "x"}, {"format_version": 2}, {"orientations": {}}, {"orientations": ["LLL"]}]
)
def test_other_records_are_refused(tmp_path, change):
    record = {"format": "swinfuse-training-images", "format_version": 1, "orientations": {"LPS": 1}, **change}
    (tmp_path / "r.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"r\.json: damaged or of another version"):
        read_record(tmp_path / "r.json")
