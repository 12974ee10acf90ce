import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import Patient, Volume
from pretraining.preprocessed.splits import split_patients


def patients(tmp_path, pairs=0, ct=0, mr=0):
    volumes = {domain: Volume(domain, domain, tmp_path) for domain in ("CT", "MR")}
    return (
        [Patient(f"p{i}", (volumes["CT"], volumes["MR"]), True) for i in range(pairs)]
        + [Patient(f"c{i}", (volumes["CT"],), False) for i in range(ct)]
        + [Patient(f"m{i}", (volumes["MR"],), False) for i in range(mr)]
    )


def test_every_kind_of_patient_is_on_both_sides(tmp_path):
    split = split_patients(patients(tmp_path, pairs=20, ct=40, mr=2), 0.1, seed=0)
    held_out = [name for name, side in split.items() if side == "validation"]
    assert {kind: sum(name[0] == kind for name in held_out) for kind in "pcm"} == {"p": 2, "c": 4, "m": 1}
    assert len(split) == 62
    assert set(split.values()) == {"train", "validation"}


def test_a_split_depends_on_the_seed_and_not_on_the_order(tmp_path):
    all_patients = patients(tmp_path, pairs=20)
    first = split_patients(all_patients, 0.3, seed=0)
    assert split_patients(all_patients[::-1], 0.3, seed=0) == first
    assert split_patients(all_patients, 0.3, seed=1) != first


def test_a_single_patient_of_a_kind_is_for_training(tmp_path):
    assert split_patients(patients(tmp_path, pairs=4, ct=1), 0.1, seed=0)["c0"] == "train"


@pytest.mark.parametrize("counts", [{"pairs": 1}, {"ct": 5, "mr": 1}, {"pairs": 1, "ct": 1, "mr": 1}])
def test_too_few_patients_to_validate_on_are_refused(tmp_path, counts):
    with pytest.raises(InputError, match=r"too few patients with (CT|MR).*two"):
        split_patients(patients(tmp_path, **counts), 0.1, seed=0)


def test_a_collection_of_one_domain_is_split_too(tmp_path):
    split = split_patients(patients(tmp_path, mr=10), 0.2, seed=0)
    assert sorted(split.values()) == ["train"] * 8 + ["validation"] * 2
