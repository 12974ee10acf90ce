from typing import get_args

import pytest
import torch

from nnunetv2_swinfuse.architecture.topology import plan_topology, residual_topology
from pretraining.heads import Crops, LinearInpaintingHead, RotationHead
from pretraining.losses.rotation import rotation_accuracy, rotation_loss
from pretraining.model import PretrainingModel, token_sizes
from pretraining.settings import InpaintingHeadKind

from .synthetic import RESENC, synthetic_batch, tiny


def random_head(channels, strides):
    """A linear head with random weights, as after training; a new one is zero."""
    head = LinearInpaintingHead(channels, strides)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


def test_a_token_reconstructs_its_own_voxels_in_their_order():
    head = LinearInpaintingHead([2], [(1, 2, 2)])
    with torch.no_grad():
        head.layers[0].weight.zero_()
        head.layers[0].bias.copy_(torch.arange(4.0))
        head.layers[0].weight[:, 0] = 10
    feature = torch.zeros(1, 2, 1, 2, 2)
    feature[0, 0, 0, 1, 0] = 1

    voxels = head(None, [feature])[0, 0, 0]

    # (y, x): the token at y 1, x 0 covers the rows 2 and 3, and the columns 0 and 1.
    assert voxels.tolist() == [[0, 1, 0, 1], [2, 3, 2, 3], [10, 11, 0, 1], [12, 13, 2, 3]]


def test_a_cut_out_token_without_information_cannot_be_reconstructed_by_the_head():
    """The head has no context: what the features of a token do not show, it cannot infer from those around."""
    head = random_head([3, 6], [(2, 2, 2), (4, 4, 4)])
    features = [torch.randn(1, 3, 4, 4, 4), torch.randn(1, 6, 2, 2, 2)]
    changed = [f.clone() for f in features]
    changed[0][..., 2:, :, :] += 1
    changed[1][..., 1:, :, :] += 1

    voxels, others = head(None, features), head(None, changed)

    assert torch.equal(voxels[:, :, :4], others[:, :, :4])
    assert (voxels[:, :, 4:] - others[:, :, 4:]).abs().min() > 0


def test_the_first_reconstruction_is_the_mean_and_every_layer_learns():
    head = LinearInpaintingHead([3, 6], [(2, 2, 2), (4, 4, 4)])
    features = [torch.randn(2, 3, 4, 4, 4), torch.randn(2, 6, 2, 2, 2)]
    voxels = head(None, features)
    assert torch.equal(voxels, torch.zeros(2, 1, 8, 8, 8))
    (voxels - torch.randn(voxels.shape)).square().mean().backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in head.layers)


def test_deep_tokens_reconstruct_coarse_voxels():
    head = random_head([3, 6], [(8, 8, 8), (16, 16, 16)])
    assert [layer.out_channels for layer in head.layers] == [512, 512]
    voxels = head(None, [torch.zeros(1, 3, 2, 2, 2), torch.randn(1, 6, 1, 1, 1)])
    assert voxels.shape == (1, 1, 16, 16, 16)
    # Of the deepest token one value for two voxels along each axis; the finer layer adds the same to all tokens.
    cells = voxels - head(None, [torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 6, 1, 1, 1)])
    torch.testing.assert_close(cells[..., 0::2, 0::2, 0::2], cells[..., 1::2, 1::2, 1::2], atol=1e-5, rtol=1e-5)


def test_sizes_of_tokens_follow_the_strides():
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert token_sizes(plan_topology(strides, 1), 2) == [(1, 2, 2), (2, 4, 4)]
    assert token_sizes(residual_topology(strides), 3) == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]


@pytest.mark.parametrize("kind", get_args(InpaintingHeadKind))
@pytest.mark.parametrize("backbone", [{}, RESENC])
def test_all_heads_reconstruct_the_crop(kind, backbone):
    model = PretrainingModel(tiny(inpainting_head=kind, **backbone))
    image = synthetic_batch()["ct"]
    embedding = model.patch_embed(image)
    assert model.inpainting_head(Crops(image, None, embedding), model.encoder(embedding)).shape == image.shape


def test_the_pyramid_head_sees_how_bright_an_image_is_where_the_features_do_not():
    torch.manual_seed(0)
    model = PretrainingModel(tiny(dim="none", inpainting_head="pyramid")).eval()
    torch.nn.init.zeros_(model.patch_embed.proj.bias)
    image = synthetic_batch()["ct"]
    with torch.no_grad():
        embedding = model.patch_embed(image)
        features, of_brighter = model.encoder(embedding), model.encoder(2 * embedding)
        torch.testing.assert_close(features[0], of_brighter[0], atol=1e-2, rtol=1e-2)
        voxels, brighter = (
            model.inpainting_head(Crops(image, None, factor * embedding), features) for factor in (1, 2)
        )
    assert (voxels - brighter).abs().max() > 1e-2


def test_the_rotation_head_tells_turns_that_the_mean_does_not():
    torch.manual_seed(0)
    feature = torch.randn(1, 6, 4, 4, 4)
    turned = torch.cat([torch.rot90(feature, k, dims=(3, 4)) for k in range(4)])
    torch.testing.assert_close(turned.mean((2, 3, 4)), feature.mean((2, 3, 4)).expand(4, -1))
    head = RotationHead([6])
    turnable = torch.ones(4, dtype=torch.bool)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        loss = rotation_loss(head([turned]), torch.arange(4), turnable)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert rotation_accuracy(head([turned]), torch.arange(4), turnable) == 1
    several = RotationHead([6, 12])([torch.randn(2, 6, 9, 5, 5), torch.randn(2, 12, 1, 3, 3)])
    assert several.shape == (2, 4)


@pytest.fixture(params=[{}, RESENC], ids=["swin", "resenc"])
def network_model(request):
    torch.manual_seed(0)
    return PretrainingModel(tiny(inpainting_head="network", tasks=("inpainting",), drop_path_rate=0.0, **request.param))


@pytest.mark.parametrize("channels", [12, 768])
def test_the_rotation_heads_gradient_is_not_larger_with_more_inputs(channels):
    """It is (p - y) times the inputs: for features of variance 1, and p = 1/4 at first, its norm is sqrt(3/4)."""
    torch.manual_seed(0)
    head = RotationHead([channels])
    maps = torch.randn(1, channels, 4, 4, 4)
    rotation_loss(head([maps]), torch.tensor([2]), torch.tensor([True])).backward()
    assert head.classify.weight.grad.norm().item() == pytest.approx(0.75**0.5, rel=0.05)


def test_the_networks_own_decoder_first_reconstructs_the_mean_of_what_is_visible(network_model):
    batch = synthetic_batch()
    crops = {"CT": torch.full_like(batch["ct"], 2.0), "MR": batch["mr"]}
    cut_out = {name: torch.rand(crop.shape) < 0.6 for name, crop in crops.items()}
    seen = {name: crop.masked_fill(cut_out[name], 0.0) for name, crop in crops.items()}
    predictions = network_model(seen, cut_out=cut_out).predictions
    for name, crop in crops.items():
        for one, hidden, reconstructed in zip(crop, cut_out[name], predictions[name].reconstruction, strict=True):
            torch.testing.assert_close(reconstructed, one[~hidden].mean().expand_as(one))


def test_the_reconstruction_has_the_brightness_and_contrast_of_its_crop(network_model):
    head = network_model.inpainting_head
    torch.nn.init.normal_(head.network.decoder.seg_layers[-1].weight)
    for name, parameter in head.network.named_parameters():
        if name == "stem.convs.0.conv.weight":
            # Its padding with zeros is another border for a brighter image.
            torch.nn.init.zeros_(parameter)
    images = synthetic_batch()["ct"]
    features = network_model.encoder(network_model.patch_embed(images))
    plain, other = (head(Crops(voxels, None, None), features) for voxels in (images, 2 * images + 3))
    torch.testing.assert_close(other, 2 * plain + 3)


def test_every_tensor_that_is_transferred_learns(network_model):
    batch = synthetic_batch()
    images = {"CT": batch["ct"], "MR": batch["mr"]}
    torch.nn.init.normal_(network_model.inpainting_head.network.decoder.seg_layers[-1].weight)
    sum(p.reconstruction.square().sum() for p in network_model(images).predictions.values()).backward()
    head = dict(network_model.inpainting_head.network.named_parameters())
    for name in network_model.decoder_weights():
        # A bias before a norm changes nothing.
        if not name.endswith(("conv.bias", *(f"transpconvs.{i}.bias" for i in range(9)))):
            assert head[name].grad.abs().max() > 0, name
    # None of them is without a gradient, as DistributedDataParallel needs it.
    assert all(parameter.grad is not None for parameter in head.values())
