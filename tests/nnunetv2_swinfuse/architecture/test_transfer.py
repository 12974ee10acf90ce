import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.swin import PatchMerging
from nnunetv2_swinfuse.architecture.transfer import TransferError, _adapt_merging, transfer_encoder

from .networks import HALVINGS, build, encoder_of, features, fresh


@pytest.fixture
def encoder(settings):
    return encoder_of(build(HALVINGS, settings))


def test_same_network_gets_every_tensor(encoder, settings):
    network = fresh(HALVINGS, settings)
    report = transfer_encoder(network, encoder)
    assert sorted(report.matched) == sorted(encoder.weights)
    assert not report.adapted
    assert not report.unused
    assert all(name.startswith(("stem.", "skips.", "decoder.")) for name in report.fresh)
    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in encoder.weights.items())
    assert "fresh decoder" in str(report)


def test_an_image_repeated_in_every_channel_gives_the_pretrained_response(encoder, settings):
    network, pretrained = fresh(HALVINGS, settings, 3), build(HALVINGS, settings)
    report = transfer_encoder(network, encoder)
    assert "1 to 3 image channels" in report.adapted["patch_embed.proj.weight"]
    image = torch.randn(1, 1, 16, 16, 16)
    for ours, theirs in zip(
        features(network, image.expand(-1, 3, -1, -1, -1)), features(pretrained, image), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_one_hot_channels_of_a_cascade_start_silent(encoder, settings):
    network = fresh(HALVINGS, settings, 4)
    transfer_encoder(network, encoder, image_channels=1)
    weight = network.patch_embed.proj.weight
    assert torch.equal(weight[:, :1], encoder.weights["patch_embed.proj.weight"])
    assert not weight[:, 1:].any()


@pytest.mark.parametrize(
    "strides",
    [
        [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        [[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2]],
        [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 1, 2]],
    ],
)
def test_folded_strides_keep_the_response_to_what_is_constant_along_the_axis(encoder, settings, strides):
    # A network without attention between tokens: what remains are patches and merging, which are folded.
    image = torch.randn(1, 1, 16, 16, 16)
    stage = next(i for i, stride in enumerate(strides) if 1 in stride[:] and i)
    axis = strides[stage].index(1)
    image = image.select(2 + axis, 0).unsqueeze(2 + axis).expand_as(image)
    network, pretrained = fresh(strides, settings), build(HALVINGS, settings)
    report = transfer_encoder(network, encoder)
    assert report.adapted
    if stage == 1:
        ours = network.patch_embed(image)[0].select(1 + axis, 0)
        theirs = pretrained.patch_embed(image)[0].select(1 + axis, 0)
    else:
        merging = network.encoder.stages[stage - 2].merging
        channels = merging.norm.normalized_shape[0] // (strides[stage][0] * strides[stage][1] * strides[stage][2])
        x = torch.randn(1, 4, 4, 4, channels)
        x = x.select(1 + axis, 0).unsqueeze(1 + axis).expand_as(x)
        ours = merging(x)[0].select(axis, 0)
        theirs = pretrained.encoder.stages[stage - 2].merging(x)[0].select(axis, 0)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_spread_merging_keeps_the_response_to_constants():
    torch.manual_seed(0)
    narrow, wide = PatchMerging(6, (1, 2, 2)), PatchMerging(6, (2, 2, 2))
    for parameter in narrow.parameters():
        torch.nn.init.normal_(parameter)
    adapted = _adapt_merging({f"m.{k}": v for k, v in narrow.state_dict().items()}, "m.", (1, 2, 2), (2, 2, 2))
    wide.load_state_dict({k[2:]: v for k, v in adapted.items()})
    x = torch.randn(1, 1, 4, 4, 6).expand(1, 2, 4, 4, 6)
    torch.testing.assert_close(wide(x)[:, 0], narrow(x)[:, 0], atol=1e-4, rtol=1e-4)


def test_fewer_and_more_stages(encoder, settings):
    shallow = fresh(HALVINGS[:3], settings)
    report = transfer_encoder(shallow, encoder)
    assert report.unused
    assert all(name.startswith("encoder.stages.1.") for name in report.unused)
    deeper_settings = EncoderSettings(**{**settings.to_dict(), "depths": (2, 2, 1), "num_heads": (2, 4, 8)})
    deep = fresh([*HALVINGS, [2, 2, 2]], deeper_settings)
    report = transfer_encoder(deep, encoder)
    assert {name for name in report.fresh if name.startswith("encoder.")} == {
        name for name in deep.state_dict() if name.startswith("encoder.stages.2.")
    }


@pytest.mark.parametrize("lost", ["encoder.stages.0.blocks.1.attention.qkv.weight", "patch_embed.proj.bias"])
def test_a_tensor_that_is_not_covered_is_an_error_and_nothing_is_changed(encoder, settings, lost):
    weights = {name: weight for name, weight in encoder.weights.items() if name != lost}
    network = fresh(HALVINGS, settings)
    with pytest.raises(TransferError, match=lost):
        transfer_encoder(network, Encoder(weights, settings, encoder.strides))
    assert all((tensor == 0.123).all() for tensor in network.state_dict().values())


def test_a_wrong_prefix_never_trains_from_scratch_unnoticed(encoder, settings):
    weights = {name.replace("encoder.", "encoder.swinViT."): weight for name, weight in encoder.weights.items()}
    with pytest.raises(TransferError, match="lacks"):
        transfer_encoder(fresh(HALVINGS, settings), Encoder(weights, settings, encoder.strides))


def test_other_sizes_are_listed(encoder, settings):
    other = EncoderSettings(**{**settings.to_dict(), "feature_size": 24, "window_size": 5})
    with pytest.raises(TransferError, match="feature_size is 12 in the encoder, 24 in the network; window_size is 3"):
        transfer_encoder(fresh(HALVINGS, other), encoder)
