import json
import shutil

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import require_domains
from pretraining.collections.integrity import check
from pretraining.collections.modalities import ModalityMap
from pretraining.collections.resolve import find_collection, find_collections

from ..synthetic_volumes import ct, mr, write, write_folder_pair


def test_both_layouts_are_recognised(tmp_path):
    write_folder_pair(tmp_path / "CTMR", pairs=1)
    write(tmp_path / "SynthRAD" / "Task1" / "brain" / "1BA001" / "ct.nii.gz", ct())
    write(tmp_path / "SynthRAD" / "Task1" / "brain" / "1BA001" / "mr.nii.gz", mr())
    assert find_collection("CTMR", tmp_path).layout == "folder pair"
    synthrad = find_collection("SynthRAD", tmp_path)
    assert (synthrad.layout, synthrad.name) == ("SynthRAD", "SynthRAD")
    assert synthrad.patients[0].paired
    assert not find_collection("SynthRAD", tmp_path, unpaired=True).patients[0].paired


def test_an_unknown_name_lists_the_known_ones_and_how_to_get_data(tmp_path):
    (tmp_path / "Dataset501_Hippocampus").mkdir()
    (tmp_path / "CTMR").mkdir()
    with pytest.raises(InputError, match=r"CTMR, Dataset501_Hippocampus.*swinfuse_demo --data_only"):
        find_collection("SynthRAD", tmp_path)


def test_an_unknown_name_in_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="there is nothing"):
        find_collection("SynthRAD", tmp_path)


@pytest.mark.parametrize("name", ["", "../CTMR", "a/b", "/data/CTMR", ".."])
def test_a_path_is_no_name(tmp_path, name):
    with pytest.raises(InputError, match="not a path"):
        find_collection(name, tmp_path)


def test_an_unknown_layout_says_what_is_expected(tmp_path):
    write(tmp_path / "A" / "imagesTr" / "case_0000.nii.gz", ct())
    with pytest.raises(InputError, match=r"no volumes in a known layout.*imagesTr.*ct/ and mr/"):
        find_collection("A", tmp_path)


@pytest.mark.parametrize(("counts", "missing"), [({"ct_only": 2}, "MR"), ({"mr_only": 2}, "CT")])
def test_a_collection_needs_both_domains(tmp_path, counts, missing):
    write_folder_pair(tmp_path / "A", **counts)
    collection = find_collection("A", tmp_path)
    with pytest.raises(InputError, match=rf"no {missing} volume.*-d A OTHER"):
        require_domains(collection)
    present = {"CT": "MR", "MR": "CT"}[missing]
    require_domains(collection, (present,))
    with pytest.raises(InputError, match=f"--modalities {present}"):
        require_domains(collection)


def make_dataset(root, number, cases, channel="MRI", first=0):
    folder = root / f"Dataset{number:03d}_Made"
    for index, case in enumerate(cases):
        voxels = ct(first + index) if channel == "CT" else mr(first + index)
        write(folder / "imagesTr" / f"{case}_0000.nii.gz", voxels)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": channel}}))
    return folder


def test_a_dataset_is_found_by_its_number(tmp_path):
    make_dataset(tmp_path, 7, ["a"])
    for name in ("7", "007", "Dataset007_Made"):
        collection = find_collection(name, tmp_path)
        assert (collection.name, collection.layout) == ("Dataset007_Made", "nnU-Net raw")
    (tmp_path / "Dataset007_Other").mkdir()
    with pytest.raises(InputError, match=r"'7' is ambiguous: .*Dataset007_Made.*Dataset007_Other"):
        find_collection("7", tmp_path)


def test_several_are_one_collection_with_their_patients_apart(tmp_path):
    write_folder_pair(tmp_path / "CTMR", pairs=1)
    make_dataset(tmp_path, 501, ["a", "b"], first=1)
    collection = find_collections(["501", "CTMR"], tmp_path)
    assert collection.name == "Joint+CTMR+Dataset501_Made"
    assert [patient.identifier for patient in collection.patients] == [
        "CTMR/p0",
        "Dataset501_Made/a",
        "Dataset501_Made/b",
    ]
    assert collection.patients[0].paired
    assert find_collections(["CTMR", "501"], tmp_path).hash == collection.hash
    require_domains(collection)
    check(collection)


def test_the_same_collection_twice_is_refused(tmp_path):
    make_dataset(tmp_path, 501, ["a"])
    with pytest.raises(InputError, match="Dataset501_Made is named twice"):
        find_collections(["501", "Dataset501_Made"], tmp_path)


def test_shared_identifiers_must_be_explained_and_copies_are_never_taken(tmp_path):
    make_dataset(tmp_path, 501, ["a", "b"])
    make_dataset(tmp_path, 502, ["b", "c"], "CT")
    with pytest.raises(InputError, match=r"1 patient.*b \(Dataset501_Made and Dataset502_Made\).*--different_patients"):
        find_collections(["501", "502"], tmp_path)
    both = find_collections(["501", "502"], tmp_path, different_patients=True)
    assert len(both.patients) == len({patient.identifier for patient in both.patients}) == 4
    make_dataset(tmp_path, 503, ["b"], first=1)
    with pytest.raises(InputError, match=r"1 volume\(s\) are in two collections.*501.*b_0000.*503.*b_0000"):
        find_collections(["501", "503"], tmp_path, different_patients=True)


def test_a_copy_with_another_name_is_found(tmp_path):
    make_dataset(tmp_path, 501, ["a", "b"])
    write_folder_pair(tmp_path / "Other", mr_only=1)
    shutil.copy(
        tmp_path / "Dataset501_Made" / "imagesTr" / "b_0000.nii.gz", tmp_path / "Other" / "mr" / "renamed.nii.gz"
    )
    with pytest.raises(InputError, match=r"1 volume\(s\) are in two collections.*b_0000.*renamed"):
        find_collections(["501", "Other"], tmp_path)


def test_nnssls_folder_is_searched_too(tmp_path, monkeypatch):
    raw, nnssl_raw = tmp_path / "raw", tmp_path / "nnssl"
    raw.mkdir()
    monkeypatch.setenv("nnssl_raw", str(nnssl_raw))
    write(nnssl_raw / "Dataset745_Made" / "a.nii.gz", mr())
    images = [{"name": "a", "modality": "T1w", "image_path": "$nnssl_raw/Dataset745_Made/a.nii.gz"}]
    subjects = {"s": {"sessions": {"1": {"images": images}}}}
    (nnssl_raw / "Dataset745_Made" / "pretrain_data.json").write_text(
        json.dumps({"datasets": {"1": {"subjects": subjects}}})
    )
    assert find_collection("745", raw).layout == "nnssl"


def test_a_collection_without_volumes_is_refused(tmp_path):
    make_dataset(tmp_path, 501, ["a"])
    with pytest.raises(InputError, match=r"no volumes .*left out"):
        find_collection("501", tmp_path, modalities=ModalityMap({"MRI": "none"}))
