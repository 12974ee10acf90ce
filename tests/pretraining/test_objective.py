import math

import pytest
import torch

from pretraining.model import PretrainingModel
from pretraining.objective import evaluate, foreground_tokens, two_views
from pretraining.randomness import sample_generators

from .synthetic import RESENC, synthetic_batch, tiny


@pytest.mark.parametrize("backbone", [{}, RESENC])
def test_all_losses_reach_the_encoder_and_the_step_decides_all_draws(backbone):
    configuration = tiny(single_share=0.0, **backbone)
    torch.manual_seed(0)
    model = PretrainingModel(configuration)
    # Its weights start at zero, so that no gradient passes in the first step.
    torch.nn.init.normal_(model.rotation_head.classify.weight)
    first = evaluate(model, synthetic_batch(), configuration, 3, None)
    assert set(first.losses) == {"inpainting", "contrastive", "cross_modal", "rotation", "density"}
    torch.rand(10)
    repeated = evaluate(model, synthetic_batch(), configuration, 3, None)
    other = evaluate(model, synthetic_batch(), configuration, 4, None)
    assert first.total.item() == repeated.total.item() != other.total.item()
    for loss in first.losses.values():
        gradients = torch.autograd.grad(loss, list(model.patch_embed.parameters()), retain_graph=True)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_cross_modal_loss_needs_registered_pairs():
    configuration = tiny(cross_modal_weight=1.0)
    model = PretrainingModel(configuration)
    batch = synthetic_batch()
    assert "cross_modal" in evaluate(model, batch, configuration, 0, None).losses
    unpaired = {**batch, "paired": torch.zeros(2, dtype=torch.bool)}
    assert "cross_modal" not in evaluate(model, unpaired, configuration, 0, None).losses


def test_total_is_the_weighted_sum():
    weights = {
        "inpainting_weight": 2.0,
        "contrastive_weight": 0.5,
        "cross_modal_weight": 0.7,
        "rotation_weight": 3.0,
        "density_weight": 4.0,
    }
    configuration = tiny(single_share=0.0, density_warmup_steps=0, **weights)
    result = evaluate(PretrainingModel(configuration), synthetic_batch(), configuration, 0, None)
    expected = sum(configuration.loss_weight(name) * loss for name, loss in result.losses.items())
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_validation_weights_densities_fully_whichever_batch_it_is():
    configuration = tiny(density_warmup_steps=100, density_weight=4.0)
    with torch.no_grad():
        result = evaluate(PretrainingModel(configuration), synthetic_batch(), configuration, 0, None, validation=True)
    expected = sum(configuration.loss_weight(name) * loss for name, loss in result.losses.items())
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_share_of_the_training_steps_encodes_images_singly():
    configuration = tiny(single_share=0.5)
    model = PretrainingModel(configuration)
    batch = synthetic_batch()
    with torch.no_grad():
        paired = ["density" in evaluate(model, batch, configuration, step, None).losses for step in range(40)]
        assert 10 <= sum(paired) <= 30
        assert all(
            "density" in evaluate(model, batch, configuration, step, None, validation=True).losses for step in range(4)
        )


@pytest.mark.parametrize("task", ["inpainting", "contrastive", "cross_modal", "rotation", "density"])
def test_a_weight_of_zero_leaves_a_task_out(task):
    configuration = tiny(single_share=0.0, **{f"{task}_weight": 0.0})
    result = evaluate(PretrainingModel(configuration), synthetic_batch(), configuration, 0, None)
    assert task not in result.losses


@pytest.mark.parametrize("backbone", [{}, RESENC])
def test_without_the_module_its_change_is_not_measured(backbone):
    configuration = tiny(dim="none", **backbone)
    result = evaluate(PretrainingModel(configuration), synthetic_batch(), configuration, 0, None, validation=True)
    assert "dim_change" not in result.health
    assert "density" in result.losses


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_single_modality_has_the_proxy_tasks_without_pairs(modality):
    configuration = tiny(modalities=(modality.upper(),))
    batch = {name: values for name, values in synthetic_batch().items() if name != {"ct": "mr", "mr": "ct"}[modality]}
    result = evaluate(PretrainingModel(configuration), batch, configuration, 0, None)
    assert set(result.losses) == {"inpainting", "contrastive", "rotation"}
    assert set(result.panels()) == {modality.upper()}
    result.total.backward()


def test_registered_crops_stay_registered_in_their_views():
    batch = synthetic_batch()
    yes = torch.ones(2, dtype=torch.bool)
    crops, turnable = {"CT": batch["ct"], "MR": batch["ct"]}, {"CT": yes, "MR": yes}
    views = two_views(crops, turnable, yes, tiny(), sample_generators(0, 0, 0, range(2)))
    ct, mr = views["CT"], views["MR"]
    assert torch.equal(ct.mask, mr.mask)
    assert torch.equal(ct.turns, mr.turns)
    assert len(ct.target) == 4
    # Intensity changes are drawn for each modality, so equal crops differ only by a monotone change.
    order = ct.target[0].flatten().argsort()
    assert (mr.target[0].flatten()[order].diff() > -1e-4).all()


def test_unregistered_crops_have_turns_of_their_own_and_the_others_none():
    crops = {name: torch.randn(64, 1, 4, 4, 4) for name in ("CT", "MR")}
    paired = torch.arange(64) % 2 == 0
    turnable = {"CT": torch.arange(64) < 48, "MR": torch.arange(64) < 32}
    views = two_views(crops, turnable, paired, tiny(), sample_generators(0, 0, 0, range(64)))
    ct, mr = (views[name].turns.reshape(2, 64) for name in ("CT", "MR"))
    assert (ct[:, 48:] == 0).all()
    assert (mr[:, 32:] == 0).all()
    assert torch.equal(ct[:, :32:2], mr[:, :32:2])
    # Of 32 independent pairs of draws, a quarter agrees by chance.
    assert 1 <= (ct[:, 1:32:2] == mr[:, 1:32:2]).sum() <= 18
    assert set(ct[:, :48].flatten().tolist()) == {0, 1, 2, 3}


def test_the_rotation_task_leaves_out_crops_that_must_not_be_turned():
    configuration = tiny(rotation_weight=1.0)
    model = PretrainingModel(configuration)
    torch.nn.init.normal_(model.rotation_head.classify.weight)
    yes, no = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    batch = {**synthetic_batch(), "paired": no, "ct_turnable": torch.tensor([True, False]), "mr_turnable": no}
    result = evaluate(model, batch, configuration, 0, None)
    values = result.values()
    assert values["turnable_share_CT"] == 0.5
    assert values["turnable_share_MR"] == 0
    assert "rotation_accuracy_MR" not in values
    # The mean is over the modalities with turnable crops.
    ct_only = evaluate(model, {**batch, "mr_turnable": yes, "ct_turnable": no}, configuration, 0, None)
    assert values["rotation"] > 0.5
    assert ct_only.values()["rotation"] > 0.5


def test_a_batch_without_turnable_crops_trains_all_but_the_rotation_head():
    configuration = tiny()
    model = PretrainingModel(configuration)
    no = torch.zeros(2, dtype=torch.bool)
    result = evaluate(model, {**synthetic_batch(), "ct_turnable": no, "mr_turnable": no}, configuration, 0, None)
    assert result.losses["rotation"].item() == 0
    assert not {name for name in result.values() if name.startswith("rotation")}
    result.total.backward()
    # DistributedDataParallel waits for a gradient of every parameter.
    assert all((p.grad == 0).all() for p in model.rotation_head.parameters())
    assert any((p.grad != 0).any() for p in model.patch_embed.parameters())


def test_flat_background_is_no_foreground():
    image = torch.full((1, 1, 16, 16, 16), -1.0)
    image[:, :, :8] = torch.randn(8, 16, 16)
    tokens = foreground_tokens(image, (4, 4, 4)).reshape(4, 4, 4)
    assert tokens[:2].all()
    assert not tokens[2:].any()


def test_bandwidth_is_averaged_in_training_only():
    configuration = tiny(single_share=0.0)
    model = PretrainingModel(configuration)
    running = torch.tensor(2.0)
    with torch.no_grad():
        trained = evaluate(model, synthetic_batch(), configuration, 0, running)
        validated = evaluate(model, synthetic_batch(), configuration, 0, running, validation=True)
    assert trained.bandwidth.item() == pytest.approx(0.9 * 2.0 + 0.1 * trained.health["bandwidth"].item())
    assert validated.bandwidth is running
    assert trained.health["divergence_share"].item() == pytest.approx(trained.losses["density"].item() / math.log(2))
