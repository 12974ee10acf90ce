import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections import synthrad

from ..synthetic_volumes import ct, mr, write


def make_patient(folder, names=("ct", "mr", "mask"), ending=".nii.gz"):
    for name in names:
        write(folder / f"{name}{ending}", mr() if name == "mr" else ct())


@pytest.mark.parametrize("start", ["SynthRAD2025/Train/Task1/AB", "SynthRAD2025/Task1/AB", "Task1/brain", "brain", "."])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_a_patient_is_found_at_any_level(tmp_path, start, ending):
    make_patient(tmp_path / start / "1BA001", ending=ending)
    make_patient(tmp_path / start / "overview", ending=ending)
    assert synthrad.matches(tmp_path)
    (patient,) = synthrad.read("SynthRAD", tmp_path).patients
    assert patient.identifier == "1BA001"
    assert patient.paired
    assert {(v.modality, v.domain, v.path.name, v.mask.name) for v in patient.volumes} == {
        ("CT", "CT", f"ct{ending}", f"mask{ending}"),
        ("MR", "MR", f"mr{ending}", f"mask{ending}"),
    }


def test_patients_at_several_levels_are_all_read(tmp_path):
    make_patient(tmp_path / "Task1" / "brain" / "1BA001")
    make_patient(tmp_path / "synthRAD2025_Task1_Train" / "Task1" / "AB" / "1ABA005", ending=".mha")
    assert [patient.identifier for patient in synthrad.read("SynthRAD", tmp_path).patients] == ["1ABA005", "1BA001"]


def test_deeper_patients_are_refused_instead_of_left_out(tmp_path):
    make_patient(tmp_path / "Task1" / "brain" / "1BA001")
    make_patient(tmp_path / "a" / "b" / "c" / "d" / "overview" / "1BA002")
    write(tmp_path / "a" / "b" / "c" / "d" / "e" / ".hidden" / "ct.nii.gz", ct())
    synthrad.read("SynthRAD", tmp_path)
    make_patient(tmp_path / "a" / "b" / "c" / "d" / "Task1" / "1BA003", ("cbct",))
    with pytest.raises(InputError, match=r"Task1.1BA003: cbct\.nii\.gz is more than 5 folders below .*move"):
        synthrad.read("SynthRAD", tmp_path)


def test_cone_beam_ct_belongs_to_the_ct_domain(tmp_path):
    make_patient(tmp_path / "Task2" / "brain" / "2BA001", ("ct", "cbct"))
    (patient,) = synthrad.read("SynthRAD", tmp_path).patients
    assert [(v.modality, v.domain) for v in patient.volumes] == [("CBCT", "CT"), ("CT", "CT")]
    assert not patient.paired


def test_a_patient_without_ct_or_mr_is_one_sided(tmp_path):
    make_patient(tmp_path / "Task1" / "brain" / "1BA001", ("ct",))
    make_patient(tmp_path / "Task1" / "brain" / "1BA002", ("mr", "mask"))
    patients = synthrad.read("SynthRAD", tmp_path).patients
    assert [(p.identifier, p.domains(), p.paired) for p in patients] == [
        ("1BA001", {"CT"}, False),
        ("1BA002", {"MR"}, False),
    ]


def test_links_are_followed_and_a_link_to_nothing_keeps_its_patient_whole(tmp_path):
    make_patient(tmp_path / "elsewhere")
    patient = tmp_path / "raw" / "Task1" / "brain" / "1BA001"
    patient.mkdir(parents=True)
    (patient / "ct.nii.gz").symlink_to(tmp_path / "elsewhere" / "ct.nii.gz")
    (patient / "mr.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert synthrad.read("SynthRAD", tmp_path / "raw").patients[0].paired


def test_the_same_patient_twice_is_refused(tmp_path):
    make_patient(tmp_path / "Task1" / "brain" / "A")
    make_patient(tmp_path / "Task1" / "pelvis" / "A")
    with pytest.raises(InputError, match=r"patient A is in .*brain.* and in .*pelvis"):
        synthrad.read("SynthRAD", tmp_path)


def test_a_mask_without_its_image_is_refused(tmp_path):
    make_patient(tmp_path / "Task1" / "brain" / "1BA001")
    make_patient(tmp_path / "Task1" / "brain" / "1BA003", ("mask",))
    with pytest.raises(InputError, match=r"1BA003/mask\.nii\.gz: a mask without its image"):
        synthrad.read("SynthRAD", tmp_path)


def test_two_masks_are_refused(tmp_path):
    make_patient(tmp_path / "A")
    make_patient(tmp_path / "A", ("mask",), ".mha")
    with pytest.raises(InputError, match="two files for one mask"):
        synthrad.read("SynthRAD", tmp_path)


def test_one_modality_in_two_files_is_refused(tmp_path):
    make_patient(tmp_path / "A", ("ct",))
    make_patient(tmp_path / "A", ("ct",), ".mha")
    with pytest.raises(InputError, match="two files for one modality"):
        synthrad.read("SynthRAD", tmp_path)


def test_other_folders_do_not_match(tmp_path):
    write(tmp_path / "imagesTr" / "case_0000.nii.gz", ct())
    assert not synthrad.matches(tmp_path)


def test_a_modality_in_a_format_that_is_not_read_is_refused(tmp_path):
    write(tmp_path / "1BA001" / "mr.nii.gz", mr())
    write(tmp_path / "1BA001" / "ct.mhd", ct())
    with pytest.raises(InputError, match=r"formats that are not read.*ct\.mhd"):
        synthrad.read("A", tmp_path)
