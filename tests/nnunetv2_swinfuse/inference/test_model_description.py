import hashlib
import json

import numpy as np
import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import Grid
from nnunetv2_swinfuse.inference.manifest import MANIFEST, Manifest
from nnunetv2_swinfuse.inference.model_description import describe_model, domain_of, grid_as_read, read_json

from .synthetic_models import ct_voxels, write_image, write_model


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_model_is_described_in_mm(tmp_path):
    described = describe_model(write_model(tmp_path / "m", ("CT", "T1"), masked=True))
    assert [(c.name, c.domain, c.masked) for c in described.channels] == [("CT", "CT", True), ("T1", "MR", True)]
    np.testing.assert_allclose(described.spacings, [[3, 2, 1.5], [3.3, 2.2, 1.65]])
    np.testing.assert_allclose(described.extents, [[60, 48, 42], [72.6, 52.8, 49.5]])
    assert (described.orientations, described.labels["organ"]) == (frozenset({"LPS"}), 1)


def test_the_grid_is_that_of_the_readers_array():
    # Towards posterior, superior and left: RAS is the third axis, the first and the second.
    stored = Grid((4, 5, 6), (1.0, 2.0, 3.0), (0.0,) * 3, (0, 0, 1, 1, 0, 0, 0, 1, 0))
    for reader in ("NibabelIOWithReorient", "SimpleITKIOWithReorient"):
        read = grid_as_read(stored, {"image_reader_writer": reader})
        assert (read.size, read.spacing) == ((6, 4, 5), (3.0, 1.0, 2.0))
    assert grid_as_read(stored, {"image_reader_writer": "SimpleITKIO"}) is stored
    assert grid_as_read(stored, {}) is stored


@pytest.mark.parametrize(("name", "domain"), [("CT", "CT"), ("T2*", "MR"), ("PET", None)])
def test_domains(name, domain):
    assert domain_of(name) == domain


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("dataset_fingerprint", {"spacings": []}, "shapes|missing or not positive|broadcast"),
        ("dataset_fingerprint", {"spacings": [[3, 2, 0], [3, 2, 1]]}, "not positive"),
        ("dataset", {"file_ending": "nii.gz"}, "file_ending 'nii.gz'"),
        ("dataset", {"channel_names": {"0": "CT", "1": "T1"}}, "2 channels, 1 normalisations"),
        ("plans", {"configurations": {}}, "IndexError"),
    ],
)
def test_contradictions_are_refused(ct_model, file, values, message):
    change(ct_model / f"{file}.json", **values)
    with pytest.raises(InputError, match=message):
        describe_model(ct_model)


@pytest.mark.parametrize("name", ["plans", "dataset", "dataset_fingerprint", "swinfuse_training_images"])
def test_files_that_a_manifest_lists_are_compared_with_it(ct_model, name):
    files = [f"{file}.json" for file in ("plans", "dataset", "dataset_fingerprint", "swinfuse_training_images")]
    entries = {
        file: {"sha256": hashlib.sha256((ct_model / file).read_bytes()).hexdigest(), "bytes": 0} for file in files
    }
    (ct_model / MANIFEST).write_text(Manifest("D/a__b__c", entries, {}, {}, {}).to_json())
    assert describe_model(ct_model).orientations == {"LPS"}
    path = ct_model / f"{name}.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match=rf"{name}\.json has the SHA-256 .*changed or damaged"):
        describe_model(ct_model)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}\.json: (missing|no such file)"):
        describe_model(ct_model)


def test_orientations_come_from_the_record_or_the_raw_images_or_do_not_matter(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "m", orientations=None)
    assert describe_model(folder).orientations is None
    for case in "ab":
        image = tmp_path / "raw" / "Dataset900_Made" / "imagesTr" / f"{case}_0000.nii.gz"
        write_image(image, ct_voxels(), orientation="RAS")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert describe_model(folder).orientations == {"RAS"}
    change(folder / "plans.json", image_reader_writer="SimpleITKIOWithReorient")
    described = describe_model(folder)
    assert described.orientations is None
    assert "turns all images" in described.orientation_source


@pytest.mark.parametrize(("text", "message"), [("{", "damaged"), ("[]", "holds a list"), ("[" * 100_000, "damaged")])
def test_what_is_no_json_object_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=rf"a\.json: {message}"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_a_file_that_cannot_be_read_is_named(ct_model, unreadable):
    unreadable("plans.json")
    for read in (describe_model, lambda folder: read_json(folder / "plans.json")):
        with pytest.raises(InputError, match=r"plans\.json: cannot be read \(Permission denied\); check its"):
            read(ct_model)


def test_a_folder_that_cannot_be_searched_is_named(ct_model, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(ct_model), "is_dir", denied)
    with pytest.raises(InputError, match="ct_model: cannot be read"):
        describe_model(ct_model)
