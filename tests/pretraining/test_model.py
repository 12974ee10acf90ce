import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import Encoder, load_encoder
from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture
from nnunetv2_swinfuse.architecture.transfer import transfer_encoder
from pretraining.checkpoint import export_encoder
from pretraining.model import PretrainingModel

from .synthetic import RESENC, synthetic_batch, tiny


def crops(batch):
    return {"CT": batch["ct"], "MR": batch["mr"]}


@pytest.mark.parametrize("changes", [{}, {"dim": "none"}, {"fusion": "mean"}, RESENC, {**RESENC, "dim": "none"}])
@pytest.mark.parametrize("paired", [0, 1, 2])
def test_predictions_have_the_shapes_of_their_tasks(changes, paired):
    model = PretrainingModel(tiny(**changes))
    images = crops(synthetic_batch())
    outputs = model(images, paired)
    for predictions in outputs.predictions.values():
        assert predictions.reconstruction.shape == images["CT"].shape
        assert predictions.turns.shape == (2, 4)
        assert predictions.projection.shape == (2, 128)
    assert (outputs.pair is None) == (paired == 0)
    assert ("paired" in outputs.levels) == (paired > 0)
    assert ("single_image" in outputs.levels) == (paired < 2)
    for name, level in outputs.levels.items():
        expected = {"paired": paired, "single_image": 2 - paired}.get(name, 2 - paired or 2)
        assert {len(tokens) for tokens in level.tokens.values()} == {expected}
        assert {tokens.shape[1] for tokens in level.tokens.values()} == {torch.Size(level.grid).numel()}


def test_views_without_a_partner_are_encoded_as_in_fine_tuning():
    torch.manual_seed(0)
    model = PretrainingModel(tiny()).eval()
    images = crops(synthetic_batch())
    with torch.no_grad():
        features = model(images, 1).features
        for name, image in images.items():
            deployed = model.encoder(model.patch_embed(image))
            for mixed, expected in zip(features[name], deployed, strict=True):
                torch.testing.assert_close(mixed[1:], expected[1:], atol=1e-5, rtol=1e-5)
                assert (mixed[:1] - expected[:1]).abs().max() > 1e-3


@pytest.mark.parametrize("fusion", ["separate", "mean"])
def test_the_module_starts_at_the_size_that_the_settings_ask_for(fusion):
    changes = []
    for scale in (1.0, 0.1, 0.0):
        torch.manual_seed(0)
        model = PretrainingModel(tiny(dim_initial_scale=scale, fusion=fusion))
        changes.append(model(crops(synthetic_batch()), 2).change.item())
    assert changes[1] == pytest.approx(0.1 * changes[0], rel=1e-4)
    assert changes[2] == 0


def test_mean_fusion_shows_the_stages_one_map_of_both_modalities():
    torch.manual_seed(0)
    model = PretrainingModel(tiny(fusion="mean")).eval()
    images = crops(synthetic_batch())
    with torch.no_grad():
        outputs = model(images, 2)
        ct, mr = (model.patch_embed(image) for image in images.values())
        pair = model.encoder.mix_pair(ct, mr)
        expected = model.encoder.features((pair.ct + pair.mr) / 2)
    for ct_map, mr_map, mean in zip(*outputs.features.values(), expected, strict=True):
        # Equal inputs in two places of a batch: not bitwise equal on every processor.
        torch.testing.assert_close(ct_map, mr_map, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ct_map, mean, atol=1e-5, rtol=1e-5)


def test_only_paired_crops_depend_on_the_other_modality():
    torch.manual_seed(0)
    model = PretrainingModel(tiny()).eval()
    images = crops(synthetic_batch())
    images["MR"].requires_grad_()
    first, second = model(images, 1).predictions["CT"].projection
    (gradient,) = torch.autograd.grad(second.sum(), images["MR"], retain_graph=True, allow_unused=True)
    assert gradient is None or gradient.abs().max() == 0
    (gradient,) = torch.autograd.grad(first.sum(), images["MR"])
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0


def test_partners_replace_the_other_modality():
    torch.manual_seed(0)
    model = PretrainingModel(tiny()).eval()
    images = crops(synthetic_batch())
    partners = {"CT": torch.randn(2, 1, 16, 16, 16), "MR": torch.randn(2, 1, 16, 16, 16)}
    with torch.no_grad():
        expected = model(images, 2).features["CT"][0]
        same = model(images, 2, {"CT": images["MR"], "MR": images["CT"]}).features["CT"][0]
        torch.testing.assert_close(same, expected, atol=1e-5, rtol=1e-5)
        partnered = model(images, 2, partners).features["CT"][0]
        other_mr = model({**images, "MR": torch.randn(2, 1, 16, 16, 16)}, 2, partners).features["CT"][0]
    torch.testing.assert_close(other_mr, partnered, atol=1e-5, rtol=1e-5)
    assert (partnered - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["CT", "MR"])
def test_a_single_modality_is_encoded_by_itself(name):
    model = PretrainingModel(tiny()).eval()
    images = crops(synthetic_batch())
    with torch.no_grad():
        expected = model(images).predictions[name]
        outputs = model({name: images[name]})
    assert set(outputs.predictions) == {name}
    torch.testing.assert_close(outputs.predictions[name].reconstruction, expected.reconstruction, atol=1e-5, rtol=1e-5)


def test_heads_of_tasks_that_are_left_out_are_not_trained():
    model = PretrainingModel(tiny(tasks=("contrastive",)))
    still = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert still == {"inpainting_head", "rotation_head"}


@pytest.mark.parametrize("backbone", [{}, RESENC])
def test_a_sample_does_not_depend_on_its_batch(backbone):
    torch.manual_seed(0)
    model = PretrainingModel(tiny(**backbone)).eval()
    batch = synthetic_batch(3)
    with torch.no_grad():
        together = model(crops(batch), 3).predictions["CT"]
        separate = model({"CT": batch["ct"][1:2], "MR": batch["mr"][1:2]}, 1).predictions["CT"]
    torch.testing.assert_close(together.reconstruction[1:2], separate.reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.turns[1:2], separate.turns, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", [{}, RESENC])
def test_every_encoder_tensor_has_its_place_in_the_segmentation_network(backbone):
    configuration = tiny(**backbone)
    model = PretrainingModel(configuration)
    encoder = Encoder(model.encoder_weights(), configuration.encoder_settings, configuration.topology.strides)
    architecture = plans_architecture(configuration.strides, configuration.encoder_settings)
    network = build_network(architecture, 1, 3)
    report = transfer_encoder(network, encoder)
    assert set(report.matched) == {n for n, _ in model.named_parameters() if n.startswith(("patch_embed.", "encoder."))}
    image = synthetic_batch()["ct"]
    with torch.no_grad():
        expected = model.eval().encoder(model.patch_embed(image))
        features = network.eval().encoder(network.patch_embed(image))
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("changes", [{}, RESENC], ids=["swin", "resenc"])
def test_a_network_pretrained_as_a_whole_computes_the_same_in_fine_tuning(changes, tmp_path):
    torch.manual_seed(0)
    configuration = tiny(inpainting_head="network", tasks=("inpainting",), drop_path_rate=0.0, **changes)
    model = PretrainingModel(configuration).eval()
    last = model.inpainting_head.network.decoder.seg_layers[-1]
    torch.nn.init.normal_(last.weight)
    export_encoder(model, configuration, {"name": "Made"}, (2.0, 2.0, 2.0), tmp_path / "encoder.pth")
    encoder = load_encoder(tmp_path / "encoder.pth")
    architecture = plans_architecture(configuration.strides, configuration.encoder_settings)
    network = build_network(architecture, 1, 3).eval()
    report = transfer_encoder(network, encoder, decoder=True)
    assert all("seg_layers" in name for name in report.fresh)
    network.decoder.seg_layers[-1] = last
    images = synthetic_batch()["mr"]
    with torch.no_grad():
        reconstruction = model({"MR": images}).predictions["MR"].reconstruction
        deviation, mean = torch.std_mean(images, (1, 2, 3, 4), keepdim=True, correction=0)
        torch.testing.assert_close(network(images) * deviation + mean, reconstruction, atol=1e-4, rtol=1e-4)


def test_other_heads_are_not_transferred():
    assert PretrainingModel(tiny()).decoder_weights() == {}


def test_random_shifts_of_the_dims_positions_reach_the_module():
    for shifted in (False, True):
        model = PretrainingModel(tiny(dim_random_shift=shifted)).train()
        assert model.encoder.domain_invariance.random_shift is shifted
    assert PretrainingModel(tiny(dim="none", dim_random_shift=True)).encoder.domain_invariance is None
