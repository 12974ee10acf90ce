import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.analysis.layers import check_crop_size, layer_maps

from . import synthetic_analysis as synthetic


def test_layers_are_those_that_are_deployed():
    network, image = synthetic.network(), synthetic.smooth(0)
    maps = layer_maps(network, image)
    assert list(maps) == ["embedding", "DIM", "stage 0", "stage 1"]
    deployed = network.encoder(network.patch_embed(image))
    assert all(torch.equal(maps[f"stage {number}"], feature) for number, feature in enumerate(deployed))


def test_the_module_s_outputs_lie_in_its_cells():
    network, image = synthetic.network(), synthetic.smooth(0)
    embedding = network.patch_embed(image)
    tokens = network.encoder.domain_invariance.forward_single(embedding).tokens
    dim = layer_maps(network, image)["DIM"]
    assert torch.equal(dim.flatten(2).transpose(1, 2), tokens)
    assert dim.shape[2:] == network.encoder.domain_invariance.grid(tuple(embedding.shape[2:]))


def test_an_encoder_without_the_module_has_no_such_layer():
    assert "DIM" not in layer_maps(synthetic.network(dim="none"), synthetic.smooth(0))


def test_crops_that_do_not_divide_are_refused():
    network = synthetic.network()
    check_crop_size("ours", network, (16, 8, 4))
    with pytest.raises(InputError, match=r"ours: crops of 16 x 16 x 10 voxels.*divisible by 4 x 4 x 4"):
        check_crop_size("ours", network, (16, 16, 10))
