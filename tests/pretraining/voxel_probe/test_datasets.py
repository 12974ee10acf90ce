import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.modalities import ModalityMap
from pretraining.voxel_probe.datasets import (
    check_numbers,
    common_labels,
    find_dataset,
    label_key,
    split_cases,
    stored_split,
)

from ..synthetic_volumes import mr, write
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


def test_cases_of_a_comparison_are_those_that_it_fine_tunes_on(tmp_path):
    data = synthetic.dataset(cases=6)
    names = [case.name for case in data.cases]
    few, more, test = [names[4], names[1]], [names[0], names[1], names[4]], names[2:4]
    splits = {
        "4_labels__seed_0__fold_0": {"train": names[:4], "val": names[4:]},
        "3_labels__seed_7__fold_0": {"train": more, "val": test},
        "2_labels__seed_7__fold_0": {"train": few, "val": test},
    }
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({data.name: splits}))
    split = stored_split(data, path, 7)
    # The first two are the smaller set.
    assert [case.name for case in split.labelled] == [*few, names[0]]
    assert [case.name for case in split.test] == test
    check_numbers(data, split, [2, 3])
    # The first one of them is not what the comparison takes for one label.
    with pytest.raises(InputError, match="1 labelled cases, but the splits are of 2, 3"):
        check_numbers(data, split, [1])
    with pytest.raises(InputError, match=f"no split of {data.name} with seed 3; it has 4_labels__seed_0__fold_0, "):
        stored_split(data, path, 3)
    with pytest.raises(InputError, match=r"splits.json: no splits of Dataset502_Other \(KeyError"):
        stored_split(synthetic.dataset("Dataset502_Other"), path, 7)
    with pytest.raises(InputError, match=f"{names[3]}, {names[4]} are no cases of"):
        stored_split(synthetic.dataset(cases=3), path, 7)


def test_impossible_numbers_are_refused():
    data = synthetic.dataset(cases=4)
    with pytest.raises(InputError, match="4 test cases of 4"):
        split_cases(data, 0, 4)
    with pytest.raises(InputError, match="fewer with --labelled"):
        check_numbers(data, split_cases(data, 0), [3])


def test_labels_are_matched_by_their_words():
    assert label_key("Right kidney") == label_key("kidney_right")
    # Not only of Latin letters.
    assert label_key("肝臓") != label_key("脾臓")
    assert label_key("печень левая") == label_key("Левая печень")
    assert label_key("Nävus") != label_key("N vus")
    assert label_key("+") != label_key("-")
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


def test_a_channel_keeps_its_number_when_others_are_left_out(tmp_path):
    folder = synthetic.write_dataset(tmp_path, cases=2, modality="MR")
    for case in ("c0", "c1"):
        write(folder / "imagesTr" / f"{case}_0001.nii.gz", mr())
    content = json.loads((folder / "dataset.json").read_text())
    content["channel_names"] = {"0": "US", "1": "MR"}
    (folder / "dataset.json").write_text(json.dumps(content))
    modalities = ModalityMap.from_words(["US=none"])
    dataset = find_dataset("501", tmp_path, modalities, channel=1)
    assert [case.volume.path.name for case in dataset.cases] == ["c0_0001.nii.gz", "c1_0001.nii.gz"]
    with pytest.raises(InputError, match="no channel 0; there are 1"):
        find_dataset("501", tmp_path, modalities)
