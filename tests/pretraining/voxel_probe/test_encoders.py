import os
from dataclasses import replace

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import ENCODER_FILE
from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import CHECKPOINT, TrainingState, export_encoder, save_checkpoint
from pretraining.model import PretrainingModel
from pretraining.voxel_probe.encoders import FrozenEncoder, collection_normalisation, read_encoder

from ..nnunet_plans import CT
from ..synthetic import RESENC, synthetic_collection, tiny

SPACING = (2.0, 1.0, 1.0)
NORMALISATION = {"ct": {"mean": 1.0}, "mr_use_mask": True}


def checkpoint(folder, model, configuration, name="SynthRAD", digest="h"):
    collection = {"name": name, "hash": digest}
    state = TrainingState(3, model.state_dict(), {}, {}, configuration, collection, SPACING)
    save_checkpoint(state, folder / CHECKPOINT)


@pytest.mark.parametrize("changes", [{}, {"dim": "none"}, RESENC], ids=["swin", "no_dim", "resenc"])
def test_the_encoder_of_a_run_gives_the_features_of_its_model(tmp_path, changes):
    configuration = tiny(seed=5, **changes).for_spacing(SPACING)
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(1)
    model = PretrainingModel(configuration).eval()
    export_encoder(model, configuration, {"name": "A", "hash": "h"}, SPACING, folder / ENCODER_FILE, NORMALISATION)
    checkpoint(folder, model, configuration)
    image = torch.randn(1, 1, 16, 16, 16)
    for file in (folder, folder / ENCODER_FILE, folder / CHECKPOINT):
        result = read_encoder(f"mine={file}")
        assert (result.name, result.seed) == ("mine", 5)
        network = result.network(SPACING)
        with torch.no_grad():
            for ours, expected in zip(
                network.encoder(network.patch_embed(image)), model.encoder(model.patch_embed(image)), strict=True
            ):
                assert torch.equal(ours, expected)
    assert read_encoder(str(folder / ENCODER_FILE)).normalisation.ct == {"mean": 1.0}
    assert read_encoder(str(folder)).name == "run"
    assert read_encoder(str(folder / ENCODER_FILE)).digest == read_encoder(str(folder / CHECKPOINT)).digest


def test_the_newer_file_of_a_run_is_read_and_its_normalisation_looked_up(tmp_path):
    synthetic_collection(tmp_path, 2)
    preprocessed = tmp_path / "preprocessed"
    configuration = tiny().for_spacing(SPACING)
    model = PretrainingModel(configuration)
    export_encoder(model, configuration, {"name": "A", "hash": "h"}, SPACING, tmp_path / ENCODER_FILE)
    checkpoint(tmp_path, PretrainingModel(configuration), configuration)
    old = (tmp_path / CHECKPOINT).stat().st_mtime - 100
    os.utime(tmp_path / ENCODER_FILE, (old, old))
    result = read_encoder(str(tmp_path), preprocessed)
    assert result.encoder.path == str(tmp_path / CHECKPOINT)
    assert result.normalisation.mr_use_mask is False
    assert collection_normalisation("SynthRAD", preprocessed) is not None
    # Preprocessed with the intensities of the collection, which this run's were not.
    checkpoint(tmp_path, model, replace(configuration, ct_intensities=CT))
    assert read_encoder(str(tmp_path), preprocessed).normalisation is None
    with pytest.raises(InputError, match="missing or without"):
        collection_normalisation("Other", preprocessed)


def test_random_encoders_differ_by_seed_and_leave_the_generator_alone():
    settings, strides = tiny().encoder_settings, tiny().strides
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (FrozenEncoder(settings, strides, SPACING, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    weights = [next(iter(network.patch_embed.parameters())) for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_larger_random_weights_have_the_variance_of_glorot_and_bengio():
    settings = tiny(feature_size=48, dim="none").encoder_settings
    strides = tiny().topology.strides
    small, large = (FrozenEncoder(settings, strides, SPACING, seed=0, xavier=xavier) for xavier in (False, True))
    for (name, first), second in zip(small.named_modules(), large.modules(), strict=True):
        if isinstance(first, torch.nn.Linear):
            expected = (2 / (second.in_features + second.out_features)) ** 0.5
            assert first.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert second.weight.std().item() == pytest.approx(expected, rel=0.1), name
    assert torch.equal(small.patch_embed.proj.weight, large.patch_embed.proj.weight)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_larger_random_weights_leave_the_size_of_the_modules_update(scale):
    settings = tiny(feature_size=48, dim_initial_scale=scale).encoder_settings
    network = FrozenEncoder(settings, tiny().topology.strides, SPACING, seed=0, xavier=True)
    module = network.encoder.domain_invariance
    # Glorot and Bengio's for 48 inputs and 48 outputs, times the scale.
    assert module.proj.weight.std().item() == pytest.approx(scale * (2 / 96) ** 0.5, rel=0.1, abs=1e-8)
    embedding = torch.randn(1, 48, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(module(embedding), embedding) == (scale == 0)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"encoder\.pth: no such file"):
        read_encoder(str(tmp_path))
