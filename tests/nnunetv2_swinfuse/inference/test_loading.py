"""A tiny model of two folds: which weights nnU-Net's predictor gets, and what is refused first."""

import hashlib

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.loading import file_hash, load_model

from .synthetic_models import write_whole_model


def load(folder, folds=None, checkpoint="checkpoint_final.pth"):
    return load_model(folder, folds, checkpoint, nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_whole_model(tmp_path_factory.mktemp("model") / "results", folds=("fold_0", "fold_1"))


def test_the_predictor_has_the_weights_of_the_files(model):
    loaded = load(model)
    assert (loaded.configuration, loaded.folds) == ("3d_fullres", ("0", "1"))
    assert loaded.predictor.allowed_mirroring_axes == (0, 1)
    for fold, weights in zip(("fold_0", "fold_1"), loaded.predictor.list_of_parameters, strict=True):
        path = model / fold / "checkpoint_final.pth"
        assert loaded.hashes[f"{fold}/checkpoint_final.pth"] == hashlib.sha256(path.read_bytes()).hexdigest()
        expected = torch.load(path, weights_only=False)["network_weights"]
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert load(model, ["1"]).folds == ("1",)


def test_missing_folds_and_checkpoints_are_named(model, tmp_path):
    with pytest.raises(InputError, match="fold_3"):
        load(model, ["3"])
    with pytest.raises(InputError, match="any fold"):
        load(model, None, "checkpoint_best.pth")
    with pytest.raises(InputError, match="expected the name of a file"):
        load(model, None, "../checkpoint_final.pth")
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        file_hash(tmp_path / "nowhere")
