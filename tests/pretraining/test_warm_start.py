"""Starting from an existing encoder."""

from dataclasses import replace

import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import export_encoder
from pretraining.loop import Training
from pretraining.model import NETWORK_HEAD, PretrainingModel
from pretraining.warm_start import initialize, load_initial

from .synthetic import RESENC, tiny

# MONAI's encoder always has four stages; a run may use fewer.
FOUR_STAGES = {"depths": (2, 1, 1, 1), "num_heads": (2, 2, 4, 4)}

swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr", reason="MONAI makes the weights of this test")


@pytest.fixture
def monai_file(tmp_path):
    configuration = tiny(**FOUR_STAGES)
    torch.manual_seed(1)
    peer = swin_unetr.SwinTransformer(
        in_chans=1, embed_dim=configuration.feature_size, window_size=(configuration.window_size,) * 3,
        patch_size=(2, 2, 2), depths=configuration.depths, num_heads=configuration.num_heads,
        mlp_ratio=configuration.mlp_ratio, downsample=swin_unetr.PatchMerging, spatial_dims=3,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path / "model_swinvit.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in peer.state_dict().items()}}, path)
    return path, peer


def test_begins_with_monais_features_where_the_module_is_new(monai_file, monkeypatch):
    path, peer = monai_file
    monkeypatch.setenv("SWINFUSE_MONAI_MERGING", "merging")
    configuration, encoder = load_initial(tiny(init_from=str(path), **FOUR_STAGES))
    assert configuration.monai_clamped_bias
    model = PretrainingModel(configuration).eval()
    report = initialize(model, encoder)
    assert not report.adapted
    assert {name.split(".")[2] for name in report.unused} == {"1", "2", "3"}
    assert any(name.startswith("encoder.domain_invariance.ct_block") for name in report.fresh)
    image = torch.randn(1, 1, *configuration.crop_size)
    with torch.no_grad():
        expected = [feature.transpose(2, 4) for feature in peer(image.transpose(2, 4), normalize=True)]
        for ours, theirs in zip(model.encoder(model.patch_embed(image)), expected, strict=False):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", [{}, RESENC, {"inpainting_head": "network"}])
def test_begins_from_an_encoder_of_swinfuse_with_its_module(tmp_path, backbone):
    configuration = tiny(**backbone)
    torch.manual_seed(2)
    trained = PretrainingModel(configuration)
    export_encoder(
        trained, configuration, {"name": "Synthetic", "hash": "0"}, (1.0, 1.0, 1.0), tmp_path / "encoder.pth"
    )
    configuration, encoder = load_initial(replace(configuration, init_from=str(tmp_path / "encoder.pth")))
    model = PretrainingModel(configuration)
    report = initialize(model, encoder)
    assert not report.adapted
    weights = model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in trained.encoder_weights().items())
    # A decoder is continued too; the layer after it starts as always.
    assert all(torch.equal(weights[NETWORK_HEAD + name], tensor) for name, tensor in trained.decoder_weights().items())
    assert not report.unused
    assert weights["encoder.domain_invariance.proj.weight"].any()


def test_a_network_pretrained_as_a_whole_keeps_its_width(tmp_path):
    # As the stems of earlier versions, which had half the feature size.
    configuration = tiny(inpainting_head="network")
    trained = PretrainingModel(configuration, {"stem_features": 3})
    path = tmp_path / "encoder.pth"
    written = export_encoder(trained, configuration, {"name": "Synthetic"}, (1.0, 1.0, 1.0), path)
    assert written.details["architecture"]["arch_kwargs"]["stem_features"] == 3
    configuration, encoder = load_initial(replace(configuration, init_from=str(path)))
    model = Training.start(configuration, torch.device("cpu"), None, encoder).model
    initialize(model, encoder)
    ours = model.decoder_weights()
    assert all(torch.equal(ours[name], tensor) for name, tensor in trained.decoder_weights().items())


def test_a_decoder_without_a_place_is_reported(tmp_path):
    configuration = tiny(inpainting_head="network")
    trained = PretrainingModel(configuration)
    export_encoder(trained, configuration, {"name": "Synthetic"}, (1.0, 1.0, 1.0), tmp_path / "encoder.pth")
    configuration, encoder = load_initial(tiny(init_from=str(tmp_path / "encoder.pth")))
    assert initialize(PretrainingModel(configuration), encoder).unused == list(trained.decoder_weights())


def test_other_sizes_are_listed_with_the_options_that_take_them(monai_file):
    path, _ = monai_file
    size = tiny().feature_size
    with pytest.raises(
        InputError, match=rf"feature_size is {size} in the file, {2 * size} in the settings.*--feature_size {size}"
    ):
        load_initial(tiny(init_from=str(path), feature_size=2 * size, **FOUR_STAGES))


def test_another_backbone_is_named_with_the_options_that_take_it(tmp_path):
    residual = tiny(**RESENC)
    model = PretrainingModel(residual)
    export_encoder(model, residual, {"name": "Synthetic", "hash": "0"}, (1.0, 1.0, 1.0), tmp_path / "encoder.pth")
    with pytest.raises(
        InputError, match=r"backbone is resenc in the file, swin in the settings.*--backbone resenc --feature_size 8"
    ):
        load_initial(tiny(init_from=str(tmp_path / "encoder.pth")))


def test_a_file_without_an_encoder_is_an_error(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"init_from: .*other.pt: contains no encoder"):
        load_initial(tiny(init_from=str(tmp_path / "other.pt")))


def test_the_initial_scale_of_random_weights_is_refused(monai_file):
    with pytest.raises(InputError, match=r"dim_initial_scale is 0\.1; with --init_from the module begins as in the"):
        load_initial(tiny(init_from=str(monai_file[0]), dim_initial_scale=0.1, **FOUR_STAGES))
