import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import EncoderFileError, save_encoder
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained, monai_reading
from nnunetv2_swinfuse.architecture.monai import MonaiReading

from .networks import HALVINGS, build, encoder_of


def test_an_encoder_file_is_read_as_it_is(tmp_path, settings):
    encoder = encoder_of(build(HALVINGS, settings))
    save_encoder(encoder, tmp_path / "encoder.pth")
    loaded = load_pretrained(tmp_path / "encoder.pth")
    assert loaded.settings == settings
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in encoder.weights.items())


def test_missing_files_and_files_without_an_encoder_are_named(tmp_path):
    with pytest.raises(EncoderFileError, match=r"none\.pth"):
        load_pretrained(tmp_path / "none.pth")
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(EncoderFileError, match=r"other\.pth"):
        load_pretrained(tmp_path / "other.pth")


def test_variables_choose_how_monai_is_read(monkeypatch):
    monkeypatch.delenv("SWINFUSE_MONAI_MERGING", raising=False)
    monkeypatch.delenv("SWINFUSE_MONAI_CLAMPED_BIAS", raising=False)
    assert monai_reading() == MonaiReading()
    monkeypatch.setenv("SWINFUSE_MONAI_MERGING", "mergingv2")
    monkeypatch.setenv("SWINFUSE_MONAI_CLAMPED_BIAS", "offsets")
    assert monai_reading() == MonaiReading("mergingv2", "offsets")
    monkeypatch.setenv("SWINFUSE_MONAI_MERGING", "newest")
    with pytest.raises(ValueError, match="newest"):
        monai_reading()
