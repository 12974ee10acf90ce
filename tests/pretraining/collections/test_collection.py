import hashlib
from dataclasses import replace

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import leave_out, volume_stem
from pretraining.collections.resolve import find_collection

from ..synthetic_volumes import ct, write, write_folder_pair


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.nii", "a"),
        ("pt_1.5.mha", "pt_1.5"),
        ("a.NRRD", "a"),
        ("._a.nii.gz", None),
        ("a.json", None),
        ("nii.gz", None),
    ],
)
def test_only_volumes_have_a_stem(tmp_path, name, stem):
    assert volume_stem(tmp_path / name) == stem


def test_the_hash_depends_on_the_content_and_not_on_the_place(tmp_path):
    first = find_collection("A", write_folder_pair(tmp_path / "one" / "A", pairs=1, ct_only=1).parent)
    same = find_collection("A", write_folder_pair(tmp_path / "two" / "A", pairs=1, ct_only=1).parent)
    assert first.hash == same.hash
    assert len(first.hash) == 64
    assert find_collection("A", tmp_path / "one", unpaired=True).hash != first.hash
    assert replace(first, patients=first.patients[1:]).hash != first.hash
    write(tmp_path / "two" / "A" / "ct" / "c0.nii.gz", ct(7, (30, 30, 30)))
    assert same.hash != first.hash


def test_the_hash_knows_masks_and_is_that_of_earlier_versions_without_them(tmp_path):
    patient = tmp_path / "A" / "1BA001"
    write(patient / "ct.nii.gz", ct(1))
    write(patient / "mr.nii.gz", ct(2))

    def digest():
        return find_collection("A", tmp_path).hash

    files = ((path, (patient / path).stat().st_size) for path in ("ct.nii.gz", "mr.nii.gz"))
    lines = [f"{name}|{name}|1BA001/{path}|{size}" for name, (path, size) in zip(("CT", "MR"), files, strict=True)]
    before = digest()
    assert before == hashlib.sha256("\n".join(["1BA001|True", *lines, ""]).encode()).hexdigest()
    write(patient / "mask.nii.gz", ct(3))
    added = digest()
    write(patient / "mask.nii.gz", ct(4, (30, 30, 30)))
    replaced = digest()
    assert len({before, added, replaced}) == 3
    collection = find_collection("A", tmp_path)
    (with_masks,) = collection.patients
    removed = [replace(volume, removed=volume.mask, mask=None) for volume in with_masks.volumes]
    assert replace(collection, patients=(replace(with_masks, volumes=tuple(removed)),)).hash not in (before, replaced)
    (patient / "mask.nii.gz").unlink()
    assert digest() == before


def test_summary_counts_patients_pairs_and_volumes(tmp_path):
    write_folder_pair(tmp_path / "A", pairs=2, ct_only=3, mr_only=1)
    summary = find_collection("A", tmp_path).summary()
    assert "6 patients, 2 paired, 5 CT and 3 MR volumes" in summary


def test_patients_are_left_out_with_all_their_volumes(tmp_path):
    write_folder_pair(tmp_path / "A", pairs=2, ct_only=1)
    collection = find_collection("A", tmp_path)
    first, second, third = (patient.identifier for patient in collection.patients)
    left = leave_out(collection, [second])
    assert [patient.identifier for patient in left.patients] == [first, third]
    assert left.hash == replace(collection, patients=collection.patients[::2]).hash
    with pytest.raises(InputError, match=rf"1 patient\(s\) are not in A: nobody. Its identifiers are such as {first}"):
        leave_out(collection, ["nobody", first])
    with pytest.raises(InputError, match="all 3 patients of A are left out"):
        leave_out(collection, [first, second, third])
