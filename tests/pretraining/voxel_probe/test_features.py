import pytest
import torch

from pretraining.model import PretrainingModel
from pretraining.voxel_probe.features import (
    at_voxels,
    coordinate_features,
    encoder_features,
    handmade_features,
    resize,
    with_coordinates,
)

from ..synthetic import tiny


def ramp(size=16):
    return torch.arange(size, dtype=torch.float32).expand(1, 1, size, size, size)


def test_coordinates_are_monomials_up_to_the_third_degree():
    (maps,) = coordinate_features(torch.zeros(1, 1, 8, 4, 12))
    assert maps.shape == (19, 4, 2, 6)
    x = (torch.arange(6) + 0.5) / 3 - 1
    assert torch.allclose(maps[2, 0, 0], x)
    assert torch.allclose(maps[8, 1, 1], x**2)
    assert torch.allclose(maps[18, 3, 0], x**3)


def test_handmade_means_are_centred_on_their_voxel():
    (maps,) = handmade_features(ramp())
    assert maps.shape == (8 + 3 * 8, 8, 8, 8)
    centre = 2 * torch.arange(8) + 0.5
    for first in (8, 16, 24):
        mean = maps[first, 4, 4]
        inner = slice(2, -2) if first < 24 else slice(4, 4)
        assert torch.allclose(mean[inner], centre[inner])
    # The mean of the neighbour at higher x is higher by its distance: a side of 4 has its neighbour 2 voxels away.
    assert torch.allclose(maps[15, 4, 4, 2:-3] - maps[8, 4, 4, 2:-3], torch.tensor(2.0))


def test_an_encoder_gives_its_embedding_and_all_maps_for_a_single_image():
    model = PretrainingModel(tiny()).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    maps = encoder_features(model.patch_embed, model.encoder)(image)
    expected = [model.patch_embed(image), *model.encoder(model.patch_embed(image))]
    assert [m.shape for m in maps] == [e.shape[1:] for e in expected]
    assert all(torch.equal(m, e[0]) for m, e in zip(maps, expected, strict=True))
    assert not any(m.requires_grad for m in maps)
    assert len(with_coordinates(lambda _: maps)(image)) == len(maps) + 1


@pytest.mark.parametrize("size", [(4, 4, 4), (8, 8, 8), (16, 16, 16)])
def test_a_constant_stays_constant_in_any_resolution(size):
    assert torch.allclose(resize(torch.full((2, 8, 8, 8), 3.0), size), torch.tensor(3.0))
    assert resize(torch.full((2, 8, 8, 8), 3.0), size).shape[1:] == size


def test_features_of_voxels_are_those_of_the_resized_maps():
    maps = [torch.randn(2, 4, 4, 4), torch.randn(3, 2, 2, 2)]
    values = at_voxels(maps, (4, 4, 4), torch.tensor([0, 21, 63]))
    assert values.shape == (3, 5)
    assert torch.allclose(values[1], torch.cat([resize(m, (4, 4, 4)) for m in maps])[:, 1, 1, 1])
