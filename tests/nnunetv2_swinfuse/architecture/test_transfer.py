from dataclasses import replace

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.transfer import TransferError, transfer_encoder

from .networks import HALVINGS, build, encoder_of, features, fresh, whole


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
    assert "fresh: stem at full resolution (8), skip convolutions (12), decoder (" in str(report)


def test_how_the_module_was_initialised_does_not_matter_to_trained_weights(encoder, settings):
    module = replace(settings.domain_invariance, initial_scale=0.1)
    network = fresh(HALVINGS, replace(settings, domain_invariance=module))
    assert not transfer_encoder(network, encoder).adapted
    image = torch.randn(1, 1, 16, 16, 16)
    for ours, theirs in zip(features(network, image), features(build(HALVINGS, settings), image), strict=True):
        assert torch.equal(ours, theirs)


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


def numel(tensors):
    return sum(tensor.numel() for tensor in tensors)


def test_the_report_has_the_shares_of_both_sides(encoder, settings):
    network = fresh(HALVINGS[:3], settings)
    report = transfer_encoder(network, encoder)
    used = numel(weight for name, weight in encoder.weights.items() if not name.startswith("encoder.stages.1."))
    assert report.used_share == pytest.approx(used / numel(encoder.weights.values()))
    assert report.pretrained_share == pytest.approx(used / numel(network.parameters()))
    assert report.used_share != pytest.approx(report.pretrained_share)
    first = str(report).splitlines()[0]
    assert (
        f"{100 * report.pretrained_share:.1f} % of the network's {numel(network.parameters()) / 1e6:.2f} mill" in first
    )
    assert f"{100 * report.used_share:.1f} % of the encoder's" in first
    assert not report.little_used
    assert "unused: encoder stage 1 (" in str(report)


def test_shares_count_what_folding_leaves(encoder, settings):
    # Half of the patch filters' weights are summed: all of the encoder is used, for fewer of the network's parameters.
    network = fresh([[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]], settings)
    report = transfer_encoder(network, encoder)
    assert report.used_share == 1
    saved = encoder.weights["patch_embed.proj.weight"].numel() // 2
    assert report.pretrained_parameters == numel(encoder.weights.values()) - saved


def test_the_fresh_part_is_named_in_words(encoder, settings):
    without = replace(settings, domain_invariance=None)
    weights = {n: w for n, w in encoder.weights.items() if not n.startswith("encoder.domain_invariance.")}
    added = len(encoder.weights) - len(weights)
    report = transfer_encoder(
        fresh(HALVINGS, settings), Encoder(weights, without, encoder.strides), new_domain_invariance=True
    )
    assert f"fresh: Domain Invariance Module ({added}), " in str(report).replace("stem at full resolution (8), ", "")
    assert report.used_share == 1


def test_tensors_that_nobody_takes_are_refused(encoder, settings):
    block = {n.replace("blocks.1.", "blocks.2."): w for n, w in encoder.weights.items() if "stages.0.blocks.1." in n}
    for network, given in (
        (settings, replace(encoder, weights={**encoder.weights, **block})),
        (replace(settings, domain_invariance=None), None),
    ):
        if given is None:  # weights of the module beside settings without it
            given = replace(encoder, settings=network)
        target = fresh(HALVINGS, network)
        with pytest.raises(
            TransferError, match=r"no place for, such as .'encoder.(stages.0.blocks.2|domain_invariance)"
        ):
            transfer_encoder(target, given)
        assert all((tensor == 0.123).all() for tensor in target.state_dict().values())


def test_a_module_beside_settings_without_one_is_refused_where_a_new_one_is_wanted(encoder, settings):
    invalid = replace(encoder, settings=replace(settings, domain_invariance=None))
    with pytest.raises(TransferError, match=r"no place for, such as .'encoder.domain_invariance"):
        transfer_encoder(fresh(HALVINGS, settings), invalid, new_domain_invariance=True)


def test_a_stage_beyond_the_encoders_strides_is_refused(encoder, settings):
    # The weights have two stages; strides of one more stage or less contradict them.
    with pytest.raises(TransferError, match=r"no place for, such as .'encoder.stages.1"):
        transfer_encoder(fresh(HALVINGS, settings), replace(encoder, strides=encoder.strides[:3]))


def test_the_message_on_shapes_compares_what_was_compared(encoder, settings):
    # Folding succeeds, but what comes out does not fit.
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    weight = encoder.weights["patch_embed.proj.weight"]
    invalid = replace(encoder, weights={**encoder.weights, "patch_embed.proj.weight": torch.cat([weight, weight])})
    message = (
        r"shape \(24, 1, 2, 2, 2\) in the encoder, \(24, 1, 1, 2, 2\) after patch .*, \(12, 1, 1, 2, 2\) in the net"
    )
    with pytest.raises(TransferError, match=message):
        transfer_encoder(fresh(strides, settings), invalid)


def with_segmentation_layers_of(network, other):
    network.decoder.seg_layers.load_state_dict(other.decoder.seg_layers.state_dict())
    return network


def test_a_whole_network_computes_the_same_but_for_its_segmentation_layers(settings):
    pretrained, network = build(HALVINGS, settings), fresh(HALVINGS, settings)
    report = transfer_encoder(network, whole(pretrained), decoder=True)
    assert {name.rsplit(".", 2)[0] for name in report.fresh} == {"decoder.seg_layers"}
    assert not report.unused
    counted = sum(p.numel() for n, p in network.named_parameters() if "seg_layers" not in n)
    assert report.pretrained_parameters == counted
    assert report.used_share == 1
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        expected = pretrained.eval()(image)
        torch.testing.assert_close(with_segmentation_layers_of(network, pretrained).eval()(image), expected)


def test_a_pretrained_decoder_is_reported_where_it_is_left_out(settings):
    network = fresh(HALVINGS, settings)
    encoder = whole(build(HALVINGS, settings))
    report = transfer_encoder(network, encoder)
    assert report.unused == list(encoder.decoder_weights)
    assert "unused: stem at full resolution (8), skip convolutions (12), decoder (" in str(report)
    assert all((p == 0.123).all() for n, p in network.named_parameters() if n.startswith(("stem.", "decoder.")))


@pytest.mark.parametrize("depths", [(4, 5), (5, 4)])
def test_a_decoder_keeps_its_resolutions_in_a_deeper_or_shallower_network(depths, settings):
    strides = [[1, 1, 1], *[[2, 2, 2]] * 4]
    settings = replace(settings, depths=(1, 1, 1), num_heads=(1, 2, 4))
    pretrained, network = (build(strides[:depth], settings) for depth in depths)
    fine = [dict(side.decoder.stages[-1].named_parameters()) for side in (pretrained, network)]
    assert not torch.equal(fine[0]["convs.0.conv.weight"], fine[1]["convs.0.conv.weight"])
    report = transfer_encoder(network, whole(pretrained), decoder=True)
    for level in (1, 2, 3):
        for part in ("stages", "transpconvs"):
            ours, theirs = (getattr(side.decoder, part)[-level].state_dict() for side in (network, pretrained))
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # The deepest stage of the deeper network is fresh, or has no place.
    deepest = [name for name in (*report.fresh, *report.unused) if ".0." in name and "decoder.stages" in name]
    assert deepest
    assert any(name.startswith("skips.3.") for name in (*report.fresh, *report.unused))


def test_a_pretrained_stem_and_upsampling_fit_other_channels_kernels_and_strides(settings):
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    kernels = [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    pretrained = build(HALVINGS, settings)
    network = fresh(strides, settings, 2, kernel_sizes=kernels)
    report = transfer_encoder(network, whole(pretrained), decoder=True)
    assert report.adapted["stem.convs.0.conv.weight"] == "1 to 2 image channels, kernel (3, 3, 3) to (1, 3, 3)"
    assert report.adapted["decoder.transpconvs.2.weight"] == "stride (2, 2, 2) to (1, 2, 2)"
    # An image that is constant along z, repeated in each channel, has the pretrained response away from the border.
    image = torch.randn(1, 1, 1, 16, 16).expand(-1, -1, 16, -1, -1)
    with torch.no_grad():
        ours = network.stem.convs[0].conv(image.expand(-1, 2, -1, -1, -1))
        theirs = pretrained.stem.convs[0].conv(image)
    torch.testing.assert_close(ours[:, :, 8], theirs[:, :, 8])


def test_a_decoder_of_another_width_is_refused_and_nothing_is_changed(settings):
    network = fresh(HALVINGS, settings, stem_features=9)
    with pytest.raises(TransferError, match=r"stem\.convs\.0.*SWINFUSE_PRETRAINED_DECODER=0"):
        transfer_encoder(network, whole(build(HALVINGS, settings)), decoder=True)
    assert all((parameter == 0.123).all() for parameter in network.parameters())
