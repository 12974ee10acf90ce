import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.modalities import ModalityMap


@pytest.mark.parametrize(
    ("modality", "domain"),
    [
        ("CT", "CT"),
        ("cbct", "CT"),
        ("MRI", "MR"),
        ("T1w", "MR"),
        ("T2*", "MR"),
        ("T2-FLAIR", "MR"),
        ("t2 flair", "MR"),
        ("T1-weighted", "MR"),
    ],
)
def test_known_modalities_in_any_spelling(modality, domain):
    assert ModalityMap().domain(modality, "dataset.json") == domain


@pytest.mark.parametrize("modality", ["PET", "noNorm", "", "CTx"])
def test_an_unknown_one_says_how_to_add_it(modality):
    with pytest.raises(InputError, match=rf"dataset\.json: modality '{modality}'.*--modality {modality}=CT"):
        ModalityMap().domain(modality, "dataset.json")


def test_the_command_line_extends_and_overrides():
    modalities = ModalityMap.from_words(["PET=ct", "My MR-sequence=MR", "ADC=none"])
    assert modalities.domain("pet", "") == "CT"
    assert modalities.domain("my_mr_sequence", "") == "MR"
    assert modalities.domain("ADC", "") is None
    assert ModalityMap().domain("ADC", "") == "MR"


@pytest.mark.parametrize("word", ["PET", "=CT", "PET=", "PET=US", "*=?"])
def test_words_that_say_nothing_are_refused(word):
    with pytest.raises(InputError, match="--modality"):
        ModalityMap.from_words([word])
