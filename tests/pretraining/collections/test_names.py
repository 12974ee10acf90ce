import pytest
from nnunetv2.utilities import dataset_name_id_conversion

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.names import dataset_folders, find_preprocessed, joint_name


def make(root, *names):
    for name in names:
        (root / name / "swinfuse").mkdir(parents=True)


def found(root, *names):
    return find_preprocessed(names, root, "swinfuse").parent.name


def test_a_number_finds_its_dataset(tmp_path):
    make(tmp_path, "Dataset501_A", "Dataset050_B", "Dataset5010_C")
    assert [path.name for path in dataset_folders("501", tmp_path)] == ["Dataset501_A"]
    assert [path.name for path in dataset_folders("50", tmp_path)] == ["Dataset050_B"]
    assert dataset_folders("Dataset501_A", tmp_path) == []


def test_a_joint_name_does_not_depend_on_the_order():
    assert joint_name(["B", "A"]) == joint_name(["A", "B"]) == "Joint+A+B"
    with pytest.raises(InputError, match=r"more than the 200.*pretrain_data\.json"):
        joint_name(["A" * 50] * 5)


def test_nnunet_still_finds_its_datasets_beside_a_joint_folder(tmp_path, monkeypatch):
    make(tmp_path, "Dataset501_A", joint_name(["Dataset501_A", "Dataset502_B"]))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    assert dataset_name_id_conversion.convert_id_to_dataset_name(501) == "Dataset501_A"


def test_preprocessed_folders_are_found_by_the_names_of_the_command_line(tmp_path):
    make(tmp_path, "A", "Dataset501_X", "Joint+A+Dataset501_X", "Joint+A+Dataset501_X+Dataset502_Y")
    assert found(tmp_path, "A") == "A"
    assert found(tmp_path, "501") == "Dataset501_X"
    assert found(tmp_path, "Dataset501_X", "A") == found(tmp_path, "A", "501") == "Joint+A+Dataset501_X"
    assert found(tmp_path, "502", "501", "A") == "Joint+A+Dataset501_X+Dataset502_Y"


@pytest.mark.parametrize("names", [("B",), ("502",), ("A", "502"), ("A", "A")])
def test_a_missing_name_is_refused_with_the_existing_ones(tmp_path, names):
    make(tmp_path, "A", "Joint+A+Dataset501_X")
    with pytest.raises(InputError, match=r"nothing is preprocessed.*there is A, Joint\+A.*--preprocess_only"):
        found(tmp_path, *names)
