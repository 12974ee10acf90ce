import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.preprocessing.files import count_missing, file_name, file_names, own_first


@pytest.mark.parametrize(
    ("identifier", "volume", "name"),
    [
        ("1BA001", ("CT", ""), "1BA001_CT.b2nd"),
        ("pt_1.5", ("MR", ""), "pt_1.5_MR.b2nd"),
        ("A/ds1/sub-1", ("T1w", "ses-1_scan"), "A/ds1/sub-1_ses-1_scan.b2nd"),
        ("a", ("T2*/w", ""), "a_T2__w.b2nd"),
        ("../x", ("CT", ""), "_./x_CT.b2nd"),
    ],
)
def test_names_tell_the_patient_and_the_volume(tmp_path, identifier, volume, name):
    modality, own = volume
    volumes = (Volume(modality, "MR", tmp_path / "f.nii.gz", name=own),)
    assert file_name(Patient(identifier, volumes, False), volumes[0]) == name


def test_two_volumes_of_one_name_are_refused(tmp_path):
    volumes = tuple(Volume(modality, "MR", tmp_path / f"{n}.nii.gz") for n, modality in enumerate(["T2*", "T2:"]))
    collection = Collection("A", "synthetic", tmp_path, (Patient("a", volumes, False),))
    with pytest.raises(InputError, match=r"0\.nii\.gz and .*1\.nii\.gz would both be preprocessed to a_T2_\.b2nd"):
        file_names(collection)


def test_missing_files_are_counted_in_folders_too(tmp_path):
    (tmp_path / "A").mkdir()
    for name in ("a.b2nd", "A/b.b2nd"):
        (tmp_path / name).touch()
    assert count_missing(tmp_path, ["a.b2nd", "A/b.b2nd", "A/a.b2nd", "b.b2nd"]) == 2


def test_a_part_begins_with_its_own_and_does_not_meet_the_next():
    orders = [own_first(range(7), part, 3) for part in range(3)]
    assert orders[1] == [1, 4, 2, 5, 0, 3, 6]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({order[0] for order in orders}) == 3
