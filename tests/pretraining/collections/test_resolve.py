import pytest

from pretraining.collections.collection import require_both_domains
from pretraining.collections.resolve import find_collection
from pretraining.errors import InputError

from ..made_volumes import ct, mr, write, write_folder_pair


def test_both_layouts_are_recognised(tmp_path):
    write_folder_pair(tmp_path / "CTMR", pairs=1)
    write(tmp_path / "SynthRAD" / "Task1" / "brain" / "1BA001" / "ct.nii.gz", ct())
    write(tmp_path / "SynthRAD" / "Task1" / "brain" / "1BA001" / "mr.nii.gz", mr())
    assert find_collection("CTMR", tmp_path).layout == "folder pair"
    synthrad = find_collection("SynthRAD", tmp_path)
    assert (synthrad.layout, synthrad.name) == ("SynthRAD", "SynthRAD")
    assert synthrad.patients[0].paired
    assert not find_collection("SynthRAD", tmp_path, unpaired=True).patients[0].paired


def test_an_unknown_name_lists_what_is_there_and_how_to_get_data(tmp_path):
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
    with pytest.raises(InputError, match=r"no volumes in a known layout.*ct/ and mr/"):
        find_collection("A", tmp_path)


@pytest.mark.parametrize(("counts", "missing"), [({"ct_only": 2}, "MR"), ({"mr_only": 2}, "CT")])
def test_a_collection_needs_both_domains(tmp_path, counts, missing):
    write_folder_pair(tmp_path / "A", **counts)
    collection = find_collection("A", tmp_path)
    with pytest.raises(InputError, match=rf"no {missing} volume.*-d A OTHER"):
        require_both_domains(collection)
