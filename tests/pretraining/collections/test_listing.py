import json

from pretraining.collections.integrity import check
from pretraining.collections.listing import describe, describe_all
from pretraining.collections.modalities import ModalityMap
from pretraining.collections.resolve import find_collection

from ..synthetic_volumes import ct, mr, write, write_folder_pair


def test_patients_pairs_modalities_spacings_and_sizes(tmp_path):
    write_folder_pair(tmp_path / "A", pairs=1, ct_only=1)
    write(tmp_path / "A" / "mr" / "m.nii.gz", mr(shape=(18, 22, 30)), spacing=(0.5, 1.0, 2.5))
    collection = find_collection("A", tmp_path)
    head, _, *rows = describe(collection, check(collection)).splitlines()
    assert "3 patients, 1 paired, 2 CT and 2 MR volumes" in head
    assert [row.split()[:4] for row in rows] == [["CT", "CT", "2", "0"], ["MR", "MR", "2", "0"]]
    assert "1 x 1 x 1" in rows[0]
    assert "18 x 22 x 20" in rows[0]
    assert "1.75 (1-2.5) x 1 x 0.75 (0.5-1)" in rows[1]
    assert "18 x 22 x 25 (20-30)" in rows[1]


def test_all_that_can_be_found_and_what_cannot_be_used(tmp_path):
    write_folder_pair(tmp_path / "A", pairs=2)
    write(tmp_path / "Dataset501_X" / "imagesTr" / "a_0000.nii.gz", ct())
    (tmp_path / "Dataset501_X" / "dataset.json").write_text(json.dumps({"channel_names": {"0": "PET"}}))
    (tmp_path / "Empty").mkdir()
    text = describe_all(tmp_path, ModalityMap())
    rows = {row.split()[0]: row for row in text.splitlines()[2:]}
    assert rows["A"].split() == ["A", "folder", "pair", "2", "2", "2", "2"]
    assert "modality 'PET'" in rows["Dataset501_X"]
    assert "no volumes in a known layout" in rows["Empty"]
    assert "1" in describe_all(tmp_path, ModalityMap({"PET": "CT"})).splitlines()[3]


def test_an_empty_folder_mentions_the_demo(tmp_path):
    assert "swinfuse_demo --data_only" in describe_all(tmp_path, ModalityMap())
