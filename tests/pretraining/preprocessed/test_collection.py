import json
from dataclasses import replace

import numpy as np
import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.preprocessed.collection import PreprocessedCollection, Strings

from ..synthetic import write_index


def make(folder, sides=None):
    """A pair, a CT, and a patient with two MR: p, c, m."""
    kinds = {"c": ["CT"], "m": ["MR", "MR"], "p": ["CT", "MR"]}
    patients = tuple(
        Patient(name, tuple(Volume(d, d, folder / name / f"{d}{n}.b2nd") for n, d in enumerate(domains)), name == "p")
        for name, domains in kinds.items()
    )
    split = dict.fromkeys(kinds, "train") | (sides or {})
    write_index(folder, Collection("A", "synthetic", folder, patients), split, (20, 24, 22))
    return PreprocessedCollection.open(folder)


@pytest.mark.parametrize("strings", [[], ["a"], ["", "é", "中文/x", "a" * 300]])
def test_strings_come_back(strings):
    packed = Strings.of(strings)
    assert len(packed) == len(strings)
    assert [packed[number] for number in range(len(packed))] == strings


def test_volumes_and_patients_come_back(tmp_path):
    collection = make(tmp_path)
    assert [collection.patient(volume) for volume in range(5)] == ["c", "m", "m", "p", "p"]
    assert collection.file(3) == tmp_path / "p" / "CT0.b2nd"
    assert collection.split_by_patient() == {"c": "train", "m": "train", "p": "train"}


def test_a_split_lists_pairs_and_domains(tmp_path):
    split = make(tmp_path).split("train")
    assert split.pairs.tolist() == [[3, 4]]
    assert split.ct.tolist() == [0, 3]
    assert split.mr.tolist() == [1, 2, 4]
    assert (split.unpaired_ct.tolist(), split.unpaired_mr.tolist()) == ([0], [1, 2])
    assert split.pair_probability == pytest.approx(1 / 3)


def test_splits_share_nothing(tmp_path):
    collection = make(tmp_path, {"p": "validation"})
    assert collection.split("train").pairs.shape == (0, 2)
    assert collection.split("train").pair_probability == 0
    assert collection.split("validation").pairs.tolist() == [[3, 4]]
    assert collection.split("train").ct.tolist() == [0]


def test_volumes_smaller_than_a_crop_are_counted(tmp_path):
    collection = make(tmp_path)
    assert collection.padding_shares((20, 24, 22)).tolist() == [0] * 5
    assert collection.reading_notes((8, 8, 8)) == []
    padded, chunks = collection.reading_notes((21, 8, 8))
    assert "5 of 5 volumes are smaller than a crop of 21 x 8 x 8" in padded
    assert "optimised for crops of 8 x 8 x 8" in chunks


def test_the_log_says_how_much_of_the_crops_is_padding(tmp_path):
    collection = make(tmp_path)
    # The volumes have 20 x 24 x 22 voxels.
    assert "on average 50% of these crops (50% of all crops) is padding" in collection.reading_notes((40, 8, 8))[0]
    shape = collection.table.shape.copy()
    shape[1:] = 40
    collection.table = replace(collection.table, shape=shape)
    assert collection.padding_shares((40, 8, 8)).tolist() == [0.5, 0, 0, 0, 0]
    assert "on average 50% of these crops (10% of all crops) is padding" in collection.reading_notes((40, 8, 8))[0]


def test_settings_that_differ_are_named(tmp_path):
    collection = make(tmp_path)
    assert collection.differences(None, 0.1, None) == []
    assert collection.differences((1.0, 1.0, 1.0), 0.1, None) == []
    assert collection.differences((2, 1, 1), 0.3, {"mean": 1.0}) == [
        "spacing 1 x 1 x 1 mm in the folder, 2 x 1 x 1 mm now",
        "validation_share 0.1 in the folder, 0.3 now",
        'CT normalised with the intensities of the collection in the folder, {"mean": 1.0} now (--for a CT dataset '
        "takes those of its plans, --own_normalisation those of the collection)",
    ]


def test_a_missing_index_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match=r"index\.json: missing.*--preprocess_only"):
        PreprocessedCollection.open(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"version": "x"}', '{"version": 3}'])
def test_a_damaged_header_is_named(tmp_path, content):
    make(tmp_path)
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json: damaged.*--overwrite"):
        PreprocessedCollection.open(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "empty", "short column", "no column"])
def test_a_damaged_table_is_named(tmp_path, damage):
    make(tmp_path)
    path = tmp_path / "index.npz"
    columns = dict(np.load(path))
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "text":
        path.write_text("no table")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "short column":
        np.savez(path, **{**columns, "domain": columns["domain"][1:]})
    else:
        columns.pop("shape")
        np.savez(path, **columns)
    with pytest.raises(InputError, match=r"index\.npz: missing or damaged.*--overwrite"):
        PreprocessedCollection.open(tmp_path)


@pytest.mark.parametrize(("version", "remedy"), [(99, "newer wheel"), (1, "--overwrite"), (2, "--overwrite")])
def test_an_index_of_another_version_says_what_to_do(tmp_path, version, remedy):
    (tmp_path / "index.json").write_text(json.dumps({"version": version}))
    with pytest.raises(InputError, match=rf"version {version}.*{remedy}"):
        PreprocessedCollection.open(tmp_path)
