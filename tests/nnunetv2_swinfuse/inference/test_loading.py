"""A tiny model of two folds: which weights nnU-Net's predictor gets, and what is refused first."""

import hashlib
import zipfile

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference import loading
from nnunetv2_swinfuse.inference.export import export_model
from nnunetv2_swinfuse.inference.loading import load_model

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


def test_a_trainer_with_the_earlier_signature_is_loaded_as_by_nnunet(model, monkeypatch):
    class Earlier:
        @staticmethod
        def build_network_architecture(
            architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels,
            num_output_channels, enable_deep_supervision=True,
        ):  # fmt: skip
            return get_network_from_plans(
                architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels,
                num_output_channels, deep_supervision=enable_deep_supervision,
            )  # fmt: skip

    expected = load(model).predictor.network
    monkeypatch.setattr(loading, "recursive_find_trainer_class_by_name", lambda name: Earlier)
    network = load(model).predictor.network
    assert type(network) is type(expected)
    image = torch.randn(1, 1, 16, 32, 32)
    assert torch.equal(network.eval()(image), expected.eval()(image))


def test_a_fold_of_another_version_is_named_and_the_listed_ones_can_be_chosen(model, tmp_path):
    """An exported model of one fold, installed over one of two."""
    for folds, name in ((None, "two.zip"), (["0"], "one.zip")):
        export_model(model, tmp_path / name, folds)
        with zipfile.ZipFile(tmp_path / name) as archive:
            archive.extractall(tmp_path)
    installed = tmp_path / model.parent.name / model.name
    with pytest.raises(InputError, match=r"fold_1/checkpoint_final\.pth: not in swinfuse_manifest\.json.*-f 0"):
        load(installed)
    assert load(installed, ["0"]).folds == ("0",)


def test_a_missing_checkpoint_is_named(model):
    with pytest.raises(InputError, match=r"no checkpoint_best\.pth in any fold"):
        load(model, None, "checkpoint_best.pth")
