import pytest

from nnunetv2_swinfuse.architecture.encoder_file import EncoderFileError
from nnunetv2_swinfuse.training.encoder_choice import (
    EncoderChoiceError,
    check_same_encoder,
    choose_encoder,
    find_encoder,
)
from nnunetv2_swinfuse.training.provenance import Provenance

from .workshop import publish_encoder


def test_the_variable_comes_before_the_plan_and_the_plan_before_the_published(published, tmp_path, monkeypatch):
    planned, named = tmp_path / "planned.pth", tmp_path / "named.pth"
    for seed, path in enumerate((planned, named), start=1):
        publish_encoder(path, seed)
    assert choose_encoder(None)[0].path == str(published.encoder)
    assert choose_encoder(str(planned))[0].path == str(planned)
    monkeypatch.setenv("SWINFUSE_CHECKPOINT", str(named))
    encoder, origin = choose_encoder(str(planned))
    assert encoder.path == str(named)
    assert "SWINFUSE_CHECKPOINT" in origin


def test_no_encoder_says_what_to_do(workshop):
    assert find_encoder(None) is None
    with pytest.raises(EncoderChoiceError, match=r"swinfuse_pretrain -d COLLECTION.*nnUNetTrainerSwinFUSEScratch") as e:
        choose_encoder(None)
    assert str(workshop.encoder) in str(e.value)


def test_a_named_file_that_is_missing_or_broken_is_named(published, tmp_path):
    with pytest.raises(EncoderFileError, match=r"absent\.pth"):
        choose_encoder(str(tmp_path / "absent.pth"))
    published.encoder.write_bytes(published.encoder.read_bytes()[:1000])
    with pytest.raises(EncoderFileError, match=str(published.encoder)):
        choose_encoder(None)


def test_another_encoder_is_refused_when_another_fold_is_trained(published, tmp_path):
    encoder, _ = choose_encoder(None)
    recorded = Provenance(encoder_sha256="0" * 64, encoder="published.pth", encoder_source="/runs/first/encoder.pth")
    model = tmp_path / "model"
    (model / "fold_0").mkdir(parents=True)
    check_same_encoder(recorded, encoder, model, fold=1)
    (model / "fold_0" / "checkpoint_best.pth").touch()
    check_same_encoder(recorded, encoder, model, fold=0)
    check_same_encoder(Provenance(encoder_sha256=encoder.sha256), encoder, model, fold=1)
    with pytest.raises(EncoderChoiceError, match=r"export SWINFUSE_CHECKPOINT=/runs/first/encoder.pth") as error:
        check_same_encoder(recorded, encoder, model, fold=1)
    assert str(encoder.path) in str(error.value)
    assert "fold_0" in str(error.value)
