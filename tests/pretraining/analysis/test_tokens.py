from dataclasses import replace

import torch

from pretraining.analysis.tokens import classes_on_grid, sample_layers

from . import synthetic_analysis as synthetic


def coordinates(image):
    """Maps whose tokens are the position of their voxel, and the voxel itself."""
    z, y, x = image.shape[2:]
    places = torch.arange(z * y * x).reshape(1, 1, z, y, x).float()
    return {"layer": torch.cat([places, image], 1)}


def halves(image):
    return {"layer": image[:, :, ::2, ::2, ::2]}


def test_registered_crops_are_sampled_at_the_same_places_and_neighbours_too():
    crops = synthetic.crop_sets(4)
    ct, mr = sample_layers(coordinates, crops, 40, 0)["layer"]
    assert ct.tokens.shape == (4, 10, 2)
    assert torch.equal(ct.tokens[..., 0], mr.tokens[..., 0])
    assert torch.equal(ct.tokens[..., 1], -mr.tokens[..., 1])
    for index in range(4):
        before = mr.neighbours[index]
        assert torch.equal(before[:, 0], ct.tokens[index, :, 0])
        expected = crops.second.crops[index - 1].image.flatten()[before[:, 0].long()]
        assert torch.equal(before[:, 1], expected)
    assert not torch.equal(ct.tokens[0, :, 0], ct.tokens[1, :, 0])


def test_samples_do_not_depend_on_the_encoder_but_on_the_seed():
    crops = synthetic.crop_sets()
    first, again, other = (sample_layers(coordinates, crops, 40, seed)["layer"][0].tokens for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_neighbour_of_the_same_patient_is_not_compared():
    crops = synthetic.crop_sets(3, patients=2)
    tokens, _ = sample_layers(halves, crops, 30, 0)["layer"]
    assert not tokens.neighbours_tissue[0].any()
    assert tokens.neighbours_tissue[1].any()


def test_air_is_marked():
    crops = synthetic.crop_sets()
    crops.first.crops[0].image.zero_()
    tokens, _ = sample_layers(lambda image: {"layer": image}, crops, 40, 0)["layer"]
    assert not tokens.tissue[0].any()
    assert tokens.tissue[1:].all()
    for crop in crops.first.crops:
        crop.image.zero_()
    tokens, _ = sample_layers(lambda image: {"layer": image}, crops, 40, 0)["layer"]
    # All is air, and then all is used.
    assert not tokens.tissue.any()
    assert tokens.mask.all()


def test_groups_alternate_between_patients():
    tokens = synthetic.layer_tokens(crops=3, samples=2)
    assert tokens.group.tolist() == [True, True, False, False, True, True]
    again = replace(synthetic.layer_tokens(crops=6, samples=1), patients=["a", "b", "c", "a", "b", "c"])
    assert again.group.tolist() == [True, False, True, True, False, True]


def test_classes_are_those_at_the_centres_of_cells():
    classes = torch.zeros(4, 4, 4, dtype=torch.long)
    classes[2:, :2, 2:] = 3
    assert classes_on_grid(classes, (2, 2, 2)).tolist() == [[[0, 0], [0, 0]], [[0, 3], [0, 0]]]


def test_labels_follow_their_tokens():
    crops = synthetic.crop_sets(labels=True)
    tokens, _ = sample_layers(halves, crops, 40, 0)["layer"]
    assert torch.equal(tokens.classes > 0, tokens.tokens[..., 0] > 0)
