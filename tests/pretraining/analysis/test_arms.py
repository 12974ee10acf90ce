from types import SimpleNamespace

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.errors import InputError
from pretraining.analysis.arms import build_arms, collection_notes, normalisation_notes
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.voxel_probe.encoders import TrainedEncoder

from ..synthetic import tiny
from . import synthetic_analysis as synthetic

SPACING = (1.0, 1.0, 1.0)


def trained(name="ours", seed=0, normalisation=None, weights=True, **changes):
    configuration = tiny(**changes)
    network = synthetic.network(seed=7, **changes)
    tensors = dict(network.state_dict()) if weights else {}
    encoder = Encoder(tensors, configuration.encoder_settings, configuration.topology.strides)
    return TrainedEncoder(name, encoder, seed, normalisation)


def test_every_architecture_has_its_own_random_encoders():
    arms = build_arms([trained(), trained("other"), trained("plain", dim="none")], SPACING, 2)
    labels = [arm.label for arm in arms]
    random = ["random 0", "random 1", "random as plain 0", "random as plain 1"]
    assert labels == [*random, "ours 0", "other 0", "plain 0"]
    assert {arm.name: arm.floor for arm in arms if not arm.random} == {
        "ours": "random", "other": "random", "plain": "random as plain",
    }  # fmt: skip
    first, second = (next(arms[index].network.parameters()) for index in (0, 1))
    assert not torch.equal(first, second)


def test_weights_are_those_of_the_encoder():
    arm = build_arms([trained()], SPACING, 0)[0]
    expected = synthetic.network(seed=7).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in arm.network.state_dict().items())


def test_encoders_without_weights_stand_for_random_ones():
    assert [arm.label for arm in build_arms([trained("random", weights=False)], SPACING, 1)] == ["random 0"]
    with pytest.raises(InputError, match="no encoder"):
        build_arms([], SPACING, 3)


def test_two_encoders_of_one_name_and_seed_are_refused():
    with pytest.raises(InputError, match=r"ours 0.*NAME=PATH"):
        build_arms([trained(), trained()], SPACING, 1)


def collection(spacing=SPACING, mean=0.0):
    header = {"normalisation": {"ct": {"mean": mean, "std": 100.0}}}
    return SimpleNamespace(folder="folder", name="Other", spacing=spacing, header=header)


def test_images_that_are_normalised_differently_are_noted():
    encoder = trained(normalisation=Normalisation(SPACING, {"mean": 0.0, "std": 100.0}, False))
    assert collection_notes([encoder], collection()) == []
    (note,) = collection_notes([encoder], collection(mean=50.0))
    assert "mean 50 instead of 0" in note
    assert "std" not in note


def test_labelled_images_are_compared_with_what_every_encoder_was_pretrained_on():
    used = Normalisation(SPACING, {"mean": 0.0, "std": 100.0}, False)
    other = trained("other", normalisation=Normalisation(SPACING, {"mean": 50.0, "std": 100.0}, False))
    (note,) = normalisation_notes([trained(normalisation=used), other], used, "ours")
    assert note.startswith("other: the CTs of ours are normalised differently")
    coarse = trained("coarse", normalisation=Normalisation((2.0, 1.0, 1.0), {}, False))
    with pytest.raises(InputError, match=r"coarse: pretrained at 2 x 1 x 1 mm, but ours has 1 x 1 x 1 mm. Analyse"):
        normalisation_notes([trained(normalisation=used), coarse], used, "ours")


def test_images_at_another_spacing_are_refused():
    encoder = trained(normalisation=Normalisation(SPACING, {}, False))
    with pytest.raises(InputError, match=r"pretrained at 1 x 1 x 1 mm, but folder has 2 x 1 x 1 mm.*--spacing"):
        collection_notes([encoder], collection((2.0, 1.0, 1.0)))
