import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.nnunet_paths import required_paths


def test_paths_are_those_of_the_variables_in_the_order_of_the_names(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert required_paths("nnUNet_results", "nnUNet_raw") == (tmp_path / "results", tmp_path)


def test_variables_that_are_missing_or_empty_are_all_named(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", "")
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(InputError, match=r"not set: nnUNet_preprocessed, nnUNet_results\..*export nnUNet_results="):
        required_paths("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def test_only_the_raw_folder_has_to_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"nnUNet_raw is .*nothing, which is no folder"):
        required_paths("nnUNet_raw")
