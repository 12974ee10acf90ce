import shutil

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections import folder_pair

from ..synthetic_volumes import ct, mr, write, write_folder_pair


def test_the_same_name_in_both_folders_is_a_pair(tmp_path):
    write_folder_pair(tmp_path, pairs=1, ct_only=1, mr_only=1)
    assert folder_pair.matches(tmp_path)
    patients = folder_pair.read("CTMR", tmp_path).patients
    assert [(p.identifier, p.domains(), p.paired) for p in patients] == [
        ("c0", {"CT"}, False),
        ("m0", {"MR"}, False),
        ("p0", {"CT", "MR"}, True),
    ]


def test_endings_may_differ_between_the_folders(tmp_path):
    write(tmp_path / "ct" / "a.mha", ct())
    write(tmp_path / "mr" / "a.nrrd", mr())
    (patient,) = folder_pair.read("CTMR", tmp_path).patients
    assert patient.paired


def test_unpaired_keeps_the_patient_but_not_the_pair(tmp_path):
    write_folder_pair(tmp_path, pairs=1)
    (patient,) = folder_pair.read("CTMR", tmp_path, unpaired=True).patients
    assert len(patient.volumes) == 2
    assert not patient.paired


def test_two_files_for_one_volume_are_refused(tmp_path):
    write(tmp_path / "ct" / "a.mha", ct())
    write(tmp_path / "ct" / "a.nii.gz", ct())
    with pytest.raises(InputError, match=r"two files for one volume: .*a\.mha and .*a\.nii\.gz"):
        folder_pair.read("CTMR", tmp_path)


def test_a_synthrad_patient_is_no_folder_pair(tmp_path):
    write(tmp_path / "ct" / "ct.nii.gz", ct())
    write(tmp_path / "ct" / "mr.nii.gz", mr())
    assert not folder_pair.matches(tmp_path)


def test_what_would_not_be_read_is_refused(tmp_path):
    write_folder_pair(tmp_path, ct_only=1)
    header = write(tmp_path / "ct" / "b.mhd", ct())
    with pytest.raises(InputError, match=r"1 image\(s\) in formats that are not read.*b\.mhd"):
        folder_pair.read("CTMR", tmp_path)
    header.unlink()
    write(tmp_path / "mr" / "more" / "c.nii.gz", mr())
    with pytest.raises(InputError, match=r"more: a folder with volumes inside of mr/"):
        folder_pair.read("CTMR", tmp_path)
    shutil.rmtree(tmp_path / "mr")
    (tmp_path / "ct" / "README.txt").touch()
    assert len(folder_pair.read("CTMR", tmp_path).patients) == 1
