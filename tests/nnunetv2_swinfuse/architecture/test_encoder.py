"""Settings of both backbones, and what their encoders share."""

import json
from dataclasses import replace

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import build_backbone

from .networks import HALVINGS


def test_settings_without_a_backbone_are_swins():
    values = EncoderSettings().to_dict()
    assert values.pop("backbone") == "swin"
    assert EncoderSettings.from_dict(values) == EncoderSettings()


def test_a_residual_encoder_has_no_settings_of_swin_blocks(residual_settings):
    settings = replace(residual_settings, window_size=4, monai_clamped_bias=True)
    assert settings == residual_settings
    assert "window_size" not in settings.to_dict()
    assert EncoderSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_the_last_depth_is_repeated(residual_settings):
    assert residual_settings.stage_depths(4) == (1, 2, 2, 2)
    assert residual_settings.stage_depths(1) == (1,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": (3, 6)}, r"depths \[1, 2\] and num_heads \[3, 6\]; expected .* one number of heads"),
        ({"depths": ()}, r"depths \[\]"),
        ({"num_heads": (3,)}, r"num_heads\[0\] is 3, which does not divide the stage's 8"),
        ({"backbone": "resnet"}, r"backbone is 'resnet'; expected one of \['swin', 'resenc'\]"),
    ],
)
def test_settings_name_what_is_wrong(residual_settings, changes, words):
    with pytest.raises(ValueError, match=words):
        replace(residual_settings, **changes)


@pytest.mark.parametrize("backbone", ["swin", "resenc"])
@pytest.mark.parametrize("invariance", [True, False])
def test_a_pair_gives_features_of_both_and_tokens(backbone, invariance, settings, residual_settings):
    chosen = settings if backbone == "swin" else residual_settings
    chosen = chosen if invariance else replace(chosen, domain_invariance=None)
    torch.manual_seed(0)
    stem, encoder = build_backbone(chosen, chosen.topology(HALVINGS))
    ct, mr = stem(torch.randn(2, 1, 16, 16, 16)), stem(torch.randn(2, 1, 16, 16, 16))
    pair = encoder.mix_pair(ct, mr)
    features = encoder.features(pair.ct)
    assert [feature.shape for feature in features] == [feature.shape for feature in encoder(ct)]
    assert [feature.shape[1] for feature in encoder.features(pair.mr)] == encoder.output_channels
    # A token is a patch of 2 x 2 x 2 voxels, or a cell of at most 64 in the module.
    assert pair.grid == ((4, 4, 4) if invariance else (8, 8, 8))
    assert pair.ct_tokens.shape == (2, pair.grid[0] ** 3, chosen.feature_size)
    assert torch.equal(pair.ct, ct) != invariance
    for single, mixed in zip(encoder(ct), encoder.features(encoder.mix_single(ct).map), strict=True):
        torch.testing.assert_close(single, mixed)
    for single, together in zip(encoder(ct), features, strict=True):
        assert torch.allclose(single, together, atol=1e-4) != invariance
