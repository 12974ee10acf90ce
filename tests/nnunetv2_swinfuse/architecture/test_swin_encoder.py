import pytest
import torch

from nnunetv2_swinfuse.architecture.swin_encoder import SwinEncoder


def test_features_are_normalised_per_token(settings):
    encoder = SwinEncoder(settings, [(2, 2, 2), (1, 2, 2)])
    features = encoder(torch.randn(2, 12, 8, 8, 8))
    assert [tuple(feature.shape) for feature in features] == [(2, 12, 8, 8, 8), (2, 24, 4, 4, 4), (2, 48, 4, 2, 2)]
    for feature in features:
        assert feature.mean(1).abs().max() < 1e-5
        torch.testing.assert_close(feature.var(1, unbiased=False), torch.ones_like(feature[:, 0]), atol=0.05, rtol=0)


def test_stochastic_depth_rises_over_all_blocks(settings):
    encoder = SwinEncoder(settings, [(2, 2, 2), (2, 2, 2)], drop_path_rate=0.3)
    blocks = [block for stage in encoder.stages for block in stage.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_linear_layers_start_small_and_without_bias(settings):
    torch.manual_seed(0)
    encoder = SwinEncoder(settings, [(2, 2, 2)])
    expand = encoder.stages[0].blocks[0].mlp.expand
    assert expand.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not expand.bias.any()


def test_more_strides_than_stages_are_refused(settings):
    with pytest.raises(ValueError, match="3 merge strides for 2 Swin stages"):
        SwinEncoder(settings, [(2, 2, 2)] * 3)
