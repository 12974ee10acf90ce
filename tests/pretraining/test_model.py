import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture
from nnunetv2_swinfuse.architecture.transfer import transfer_encoder
from pretraining.losses.rotation import rotation_accuracy, rotation_loss
from pretraining.model import PretrainingModel, RotationHead

from .synthetic import RESENC, synthetic_batch, tiny


@pytest.mark.parametrize("changes", [{}, {"dim": "none"}, {"fusion": "mean"}, RESENC, {**RESENC, "dim": "none"}])
@pytest.mark.parametrize("single_image", [False, True])
def test_predictions_have_the_shapes_of_their_tasks(changes, single_image):
    model = PretrainingModel(tiny(**changes))
    batch = synthetic_batch()
    ct, mr, pair = model(batch["ct"], batch["mr"], single_image)
    for predictions in (ct, mr):
        assert predictions.reconstruction.shape == batch["ct"].shape
        assert predictions.turns.shape == (2, 4)
        assert predictions.projection.shape == (2, 128)
    assert (pair is None) == single_image


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_single_modality_is_encoded_by_itself(modality):
    model = PretrainingModel(tiny()).eval()
    batch = synthetic_batch()
    with torch.no_grad():
        both = model(batch["ct"], batch["mr"], single_image=True)
        ct, mr, pair = model(*(batch[name] if name == modality else None for name in ("ct", "mr")))
    assert pair is None
    found, missing = (ct, mr) if modality == "ct" else (mr, ct)
    assert missing is None
    expected = both[("ct", "mr").index(modality)]
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, atol=1e-5, rtol=1e-5)


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
        together, _, _ = model(batch["ct"], batch["mr"])
        separate, _, _ = model(batch["ct"][1:2], batch["mr"][1:2])
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


def test_the_inpainting_head_sees_how_bright_an_image_is_where_the_features_do_not():
    torch.manual_seed(0)
    model = PretrainingModel(tiny(dim="none")).eval()
    torch.nn.init.zeros_(model.patch_embed.proj.bias)
    image = synthetic_batch()["ct"]
    with torch.no_grad():
        embedding = model.patch_embed(image)
        features, of_brighter = model.encoder(embedding), model.encoder(2 * embedding)
        torch.testing.assert_close(features[0], of_brighter[0], atol=1e-2, rtol=1e-2)
        voxels, brighter = (model.inpainting_head(factor * embedding, features) for factor in (1, 2))
    assert (voxels - brighter).abs().max() > 1e-2


def test_the_rotation_head_tells_turns_that_the_mean_does_not():
    torch.manual_seed(0)
    feature = torch.randn(1, 6, 4, 4, 4)
    turned = torch.cat([torch.rot90(feature, k, dims=(3, 4)) for k in range(4)])
    torch.testing.assert_close(turned.mean((2, 3, 4)), feature.mean((2, 3, 4)).expand(4, -1))
    head = RotationHead([6])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    turnable = torch.ones(4, dtype=torch.bool)
    for _ in range(60):
        loss = rotation_loss(head([turned]), torch.arange(4), turnable)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert rotation_accuracy(head([turned]), torch.arange(4), turnable) == 1
    several = RotationHead([6, 12])([torch.randn(2, 6, 9, 5, 5), torch.randn(2, 12, 1, 3, 3)])
    assert several.shape == (2, 4)
