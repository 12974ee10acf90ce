import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections import nnunet_raw
from pretraining.collections.modalities import ModalityMap

from ..synthetic_volumes import ct, mr, write


def make(root, channels, cases=("a",), **description):
    """A dataset with a file for each channel of each case."""
    for case in cases:
        for number, modality in enumerate(channels):
            write(root / "imagesTr" / f"{case}_{number:04d}.nii.gz", ct() if modality == "CT" else mr())
    content = {"channel_names": {str(n): name for n, name in enumerate(channels)}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**content, **description}))
    return root


def read(root, words=(), **options):
    assert nnunet_raw.matches(root)
    return nnunet_raw.read(root.name, root, ModalityMap.from_words(words), **options).patients


def test_a_case_is_a_patient_and_a_channel_a_volume(tmp_path):
    patients = read(make(tmp_path, ["T1w", "FLAIR"], ["b", "a_1"]))
    assert [patient.identifier for patient in patients] == ["a_1", "b"]
    assert [(v.modality, v.domain, v.path.name) for v in patients[0].volumes] == [
        ("T1w", "MR", "a_1_0000.nii.gz"),
        ("FLAIR", "MR", "a_1_0001.nii.gz"),
    ]
    assert not patients[0].paired


def test_one_ct_and_one_mr_channel_are_a_pair(tmp_path):
    make(tmp_path, ["CT", "T1"])
    assert read(tmp_path)[0].paired
    assert not read(tmp_path, unpaired=True)[0].paired


def test_labels_and_test_images_are_not_taken(tmp_path):
    make(tmp_path, ["CT"])
    write(tmp_path / "labelsTr" / "a.nii.gz", ct())
    write(tmp_path / "imagesTs" / "z_0000.nii.gz", ct())
    assert [len(patient.volumes) for patient in read(tmp_path)] == [1]


def test_channels_of_one_name_stay_apart(tmp_path):
    (patient,) = read(make(tmp_path, ["MRI", "MRI"]))
    assert [volume.name for volume in patient.volumes] == ["MRI_0000", "MRI_0001"]


def test_an_unknown_channel_is_refused_mapped_or_left_out(tmp_path):
    make(tmp_path, ["CT", "PET"])
    with pytest.raises(InputError, match=r"dataset\.json: modality 'PET'.*--modality PET=CT"):
        read(tmp_path)
    assert [volume.domain for volume in read(tmp_path, ["PET=MR"])[0].volumes] == ["CT", "MR"]
    assert [volume.modality for volume in read(tmp_path, ["PET=none"])[0].volumes] == ["CT"]


def test_all_problems_are_reported_together(tmp_path):
    make(tmp_path, ["CT"], ["a", "b"])
    write(tmp_path / "imagesTr" / "a_0000.mha", ct())
    write(tmp_path / "imagesTr" / "c_0001.nii.gz", ct())
    (tmp_path / "imagesTr" / "notes.txt").write_text("")
    write(tmp_path / "labelsTr" / "gone.nii.gz", ct())
    with pytest.raises(InputError, match=r"4 problem\(s\), nothing was changed") as caught:
        read(tmp_path)
    message = str(caught.value)
    assert "two files for one modality: " in message
    assert "a_0000.mha" in message
    assert "c_0001.nii.gz: not a channel of a case" in message
    assert "notes.txt: not a channel" in message
    assert "gone.nii.gz: a label without its image" in message


def test_a_missing_channel_is_named(tmp_path):
    make(tmp_path, ["T1", "T2"], ["a", "b"])
    (tmp_path / "imagesTr" / "b_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"b: no file for channel 1 \(T2\)"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"channel_names": 3}', '{"channel_names": {"x": "CT"}}'])
def test_a_damaged_description_is_named(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json: not in nnU-Net.s format.*channel_names"):
        read(tmp_path)


def test_images_may_be_listed_in_the_description(tmp_path, monkeypatch):
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    file = write(tmp_path / "elsewhere" / "scan.nii.gz", ct())
    listed = {"x": {"images": ["$ELSEWHERE/scan.nii.gz"], "label": "labelsTr/x.nii.gz"}}
    root = tmp_path / "A"
    root.mkdir()
    (patient,) = read(make(root, ["CT"], (), dataset=listed))
    assert (patient.identifier, patient.volumes[0].path) == ("x", file)
    with pytest.raises(InputError, match="'dataset' lists no images"):
        read(make(root, ["CT"], (), dataset={"x": {}}))


def test_more_listed_images_than_channels_are_named(tmp_path):
    listed = {"x": {"images": ["a.nii.gz", "b.nii.gz"], "label": "x.nii.gz"}}
    with pytest.raises(InputError, match=r"x: 2 images are listed, but 1 channels"):
        read(make(tmp_path, ["CT"], dataset=listed))


def test_the_old_name_of_channels_is_understood(tmp_path):
    make(tmp_path, ["MRI"])
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "MRI"}}')
    assert read(tmp_path)[0].volumes[0].domain == "MR"
