import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.cases import find_cases


def names(folder, *files, channels=1, ending=".nii.gz"):
    for file in files:
        (folder / file).write_bytes(b"x")
    return {c.name: [p.check for p in c.problems] for c in find_cases([folder], ending, channels)}


def test_numbered_and_plain_names_are_cases_and_everything_else_is_refused_by_name(tmp_path):
    (tmp_path / "sub").mkdir()
    files = ("a_0000.nii.gz", "b.nii.gz", "c.nrrd", "c.nii", "dataset.json", ".hidden.nii.gz", "readme.txt", "IM0001")
    refused = ["file_name"]
    assert names(tmp_path, *files) == {"a": [], "b": [], "c.nrrd": refused, "c.nii": refused, "IM0001": refused}


def test_one_case_twice_is_refused(tmp_path):
    assert names(tmp_path, "a.nii.gz", "a_0000.nii.gz") == {"a": ["channels"]}


def test_channels_are_counted_and_plain_names_are_not_enough(tmp_path):
    files = ("a_0000.mha", "a_0001.mha", "b_0001.mha", "c.mha", "d_0000.mha", "d_0001.mha", "d_0002.mha")
    expected = {"a": [], "b": ["channels"], "c.mha": ["file_name"], "d": ["channels"]}
    assert names(tmp_path, *files, channels=2, ending=".mha") == expected


def test_files_may_be_given_one_by_one_and_a_wrong_path_is_named(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    (case,) = find_cases([tmp_path / "a.nii.gz", tmp_path], ".nii.gz", 1)
    assert (case.name, case.files, case.problems) == ("a", {0: tmp_path / "a.nii.gz"}, [])
    with pytest.raises(InputError, match="nowhere: no such file"):
        find_cases([tmp_path / "nowhere"], ".nii.gz", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no images"):
        find_cases([tmp_path / "empty"], ".nii.gz", 1)
