import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.cases import RECORDS, find_cases


def names(folder, *files, channels=1, ending=".nii.gz"):
    for file in files:
        (folder / file).write_bytes(b"x")
    return {c.name: [p.check for p in c.problems] for c in find_cases([folder], ending, channels)}


def test_numbered_and_plain_names_are_cases_and_everything_else_is_refused_by_name(tmp_path):
    (tmp_path / "sub").mkdir()
    files = ("a_0000.nii.gz", "b.nii.gz", "c.nrrd", "c.nii", "dataset.json", ".hidden.nii.gz", "readme.txt", "IM0001")
    refused = ["file_name"]
    assert names(tmp_path, *files) == {"a": [], "b": [], "c.nrrd": refused, "c.nii": refused, "IM0001": refused}


@pytest.mark.parametrize(
    "name", ["patient_1234", "Brain_AxT2_20240101120000_1001", "Brain_AxT2_20240101120000_301", "2024_0101", "_0001"]
)
def test_with_one_channel_any_name_will_do(tmp_path, name):
    assert names(tmp_path, f"{name}.nii.gz", "other_0002.nii.gz") == {name: [], "other_0002": []}


def test_with_one_channel_a_second_channel_is_not_taken_for_a_case(tmp_path):
    assert names(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz") == {"a": ["channels"], "b_0001": []}


def test_files_of_one_name_in_two_folders_are_all_reported(tmp_path):
    files = [tmp_path / folder / name for name in ("a.nii.gz", "scan.mha") for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    double, wrong = find_cases([tmp_path / "one", tmp_path / "two"], ".nii.gz", 1)
    assert [problem.check for problem in double.problems] == ["channels"]
    assert [problem.file for problem in wrong.problems] == [str(file) for file in files[2:]]
    assert list(wrong.files.values()) == files[2:]


def test_files_in_subfolders_are_reported_and_an_output_folder_is_not(tmp_path):
    for file in ("p1.nii.gz", "p2/scans/p2.nii.gz", "empty/.hidden", "notes/readme.txt", "masks/p1.nii.gz"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    (tmp_path / "masks" / RECORDS).mkdir()
    sound, subfolder = find_cases([tmp_path], ".nii.gz", 1)
    assert (sound.name, sound.problems) == ("p1", [])
    assert (subfolder.name, [problem.check for problem in subfolder.problems]) == ("p2/", ["file_name"])
    assert str(tmp_path / "p2" / "scans" / "p2.nii.gz") in subfolder.problems[0].reason
    inputs = [tmp_path, tmp_path / "p2"]
    assert [case.name for case in find_cases(inputs, ".nii.gz", 1)] == ["p1", "scans/"]
    inputs.append(tmp_path / "p2" / "scans")
    assert [case.name for case in find_cases(inputs, ".nii.gz", 1)] == ["p1", "p2"]


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
