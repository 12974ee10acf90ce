import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.residual_encoder import ResidualEncoder, residual_stem

STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]


def test_features_have_the_channels_and_sizes_of_the_stages(residual_settings):
    encoder = ResidualEncoder(residual_settings, STRIDES)
    features = encoder(residual_stem(1, 8)(torch.randn(2, 1, 8, 16, 16)))
    assert [tuple(feature.shape) for feature in features] == [(2, 8, 8, 16, 16), (2, 16, 8, 8, 8), (2, 32, 4, 4, 4)]


def test_channels_double_up_to_nnunets_limit():
    settings = EncoderSettings(feature_size=128, depths=(1,), num_heads=(2,), domain_invariance=None, backbone="resenc")
    with torch.device("meta"):
        assert ResidualEncoder(settings, STRIDES).output_channels == [128, 256, 320]


def test_every_block_starts_as_its_shortcut(residual_settings):
    encoder = ResidualEncoder(residual_settings, STRIDES[:1])
    embedding = torch.randn(1, 8, 8, 8, 8)
    # One block without a change of size: the shortcut is the identity, followed by leaky ReLU.
    torch.testing.assert_close(encoder.features(embedding)[0], torch.nn.functional.leaky_relu(embedding, 0.01))


def test_tokens_are_means_over_eight_voxels(residual_settings):
    encoder = ResidualEncoder(residual_settings, STRIDES)
    embedding = torch.arange(4.0 * 4 * 6).reshape(1, 1, 4, 4, 6).expand(1, 8, 4, 4, 6)
    tokens, grid = encoder.tokens(embedding)
    assert grid == (2, 2, 3)
    first = embedding[0, 0, :2, :2, :2].mean()
    assert tokens[0, 0, 0].item() == first.item()
