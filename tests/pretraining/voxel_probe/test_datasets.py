import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.modalities import ModalityMap
from pretraining.voxel_probe.datasets import check_numbers, common_labels, find_dataset, label_key, split_cases

from . import synthetic_labelled as synthetic


def find(root, name="501"):
    return find_dataset(name, root, ModalityMap())


def test_cases_and_labels_of_an_nnunet_dataset(tmp_path):
    folder = synthetic.write_dataset(tmp_path)
    for name in ("501", folder.name):
        result = find(tmp_path, name)
        assert result.number == "501"
        assert result.labels == {1: "liver", 2: "spleen"}
        assert [case.name for case in result.cases] == [f"c{n}" for n in range(6)]
        assert result.cases[2].label == folder / "labelsTr" / "c2.nii.gz"


def test_splits_depend_on_the_seed_and_test_cases_not_on_the_number_of_labelled_ones():
    data = synthetic.dataset(cases=20)
    first, again, other = split_cases(data, 0), split_cases(data, 0), split_cases(data, 1)
    assert first == again != other
    assert len(first.test) == len(first.labelled) == 10
    assert not set(first.test) & set(first.labelled)
    assert split_cases(synthetic.dataset(cases=100), 0).test.__len__() == 40


def test_impossible_numbers_are_refused():
    data = synthetic.dataset(cases=4)
    with pytest.raises(InputError, match="4 test cases of 4"):
        split_cases(data, 0, 4)
    with pytest.raises(InputError, match="fewer with --labelled"):
        check_numbers(data, split_cases(data, 0), [3])


def test_labels_are_matched_by_their_words():
    assert label_key("Right kidney") == label_key("kidney_right")
    first = synthetic.dataset(names=("liver", "kidney_right"))
    second = synthetic.dataset("Dataset502_Other", names=("Kidney right", "aorta"))
    assert common_labels(first, second) == (("kidney", "right"),)
    with pytest.raises(InputError, match="a name in common"):
        common_labels(first, synthetic.dataset("Dataset503_None", names=("aorta",)))


def test_unknown_unlabelled_and_region_datasets_are_refused(tmp_path):
    folder = synthetic.write_dataset(tmp_path)
    with pytest.raises(InputError, match=r"available: Dataset501_Tiny"):
        find(tmp_path, "777")
    (folder / "labelsTr" / "c3.nii.gz").unlink()
    with pytest.raises(InputError, match="such as c3"):
        find(tmp_path)
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"]["liver"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"no label in labelsTr|regions"):
        find(tmp_path)
