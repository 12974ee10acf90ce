import pytest

from nnunetv2_swinfuse.imaging.modality_names import CT_NAMES, KNOWN, MR_NAMES, plain_name


@pytest.mark.parametrize(
    ("name", "plain"), [("T2*", "t2star"), ("T1-weighted", "t1weighted"), ("FLAIR_0", "flair0"), (" CT ", "ct")]
)
def test_spelling(name, plain):
    assert plain_name(name) == plain


def test_every_name_is_in_plain_spelling_and_of_one_modality():
    assert all(plain_name(name) == name for name in KNOWN)
    assert not set(CT_NAMES.split()) & set(MR_NAMES.split())


@pytest.mark.parametrize(
    ("name", "domain"), [("CBCT", "CT"), ("T2*w", "MR"), ("T1_Gd", "MR"), ("noNormalization", None), ("PET", None)]
)
def test_modalities_by_name(name, domain):
    assert KNOWN.get(plain_name(name)) == domain
