import math

import pytest
import torch

from pretraining import token_statistics
from pretraining.model import PretrainingModel
from pretraining.objective import evaluate
from pretraining.token_samples import foreground_tokens

from .synthetic import RESENC, synthetic_batch, tiny


@pytest.mark.parametrize("backbone", [{}, RESENC])
def test_all_losses_reach_the_encoder_and_the_step_decides_all_draws(backbone):
    configuration = tiny(**backbone)
    torch.manual_seed(0)
    model = PretrainingModel(configuration)
    # Their weights start at zero, so that no gradient passes in the first step.
    for layer in (model.rotation_head.classify, *model.inpainting_head.layers):
        torch.nn.init.normal_(layer.weight)
    first = evaluate(model, synthetic_batch(), configuration, 3, None)
    assert set(first.losses) == {
        "inpainting", "contrastive", "cross_modal", "rotation", "density", "variance", "covariance",
    }  # fmt: skip
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
    unpaired = {**batch, "registered": torch.zeros(2, dtype=torch.bool)}
    assert "cross_modal" not in evaluate(model, unpaired, configuration, 0, None).losses


def test_total_is_the_weighted_sum():
    weights = {
        "inpainting_weight": 2.0,
        "contrastive_weight": 0.5,
        "cross_modal_weight": 0.7,
        "rotation_weight": 3.0,
        "density_weight": 4.0,
    }
    configuration = tiny(density_warmup_steps=0, **weights)
    result = evaluate(PretrainingModel(configuration), synthetic_batch(), configuration, 0, None)
    expected = sum(configuration.loss_weight(name) * loss for name, loss in result.losses.items())
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_validation_weights_densities_fully_whichever_batch_it_is():
    configuration = tiny(density_warmup_steps=100, density_weight=4.0)
    with torch.no_grad():
        result = evaluate(PretrainingModel(configuration), synthetic_batch(), configuration, 0, None, validation=True)
    expected = sum(configuration.loss_weight(name) * loss for name, loss in result.losses.items())
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "task", ["inpainting", "contrastive", "cross_modal", "rotation", "density", "variance", "covariance"]
)
def test_a_weight_of_zero_leaves_a_task_out(task):
    configuration = tiny(contrastive_loss="nt_xent", **{f"{task}_weight": 0.0})
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
    other = {"ct": "mr", "mr": "ct"}[modality]
    batch = {name: values for name, values in synthetic_batch().items() if not name.startswith(other)}
    result = evaluate(PretrainingModel(configuration), batch, configuration, 0, None)
    assert set(result.losses) == {"inpainting", "contrastive", "rotation", "variance", "covariance"}
    assert set(result.reconstruction_panels()) == {modality.upper()}
    result.total.backward()


def test_the_rotation_task_leaves_out_crops_that_must_not_be_turned():
    configuration = tiny(rotation_weight=1.0)
    model = PretrainingModel(configuration)
    torch.nn.init.normal_(model.rotation_head.classify.weight)
    every, none = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    batch = {
        **synthetic_batch(),
        "registered": none,
        "ct_turnable": torch.tensor([True, False]),
        "mr_turnable": none,
    }
    result = evaluate(model, batch, configuration, 0, None)
    values = result.scalars()
    assert values["turnable_share_CT"] == 0.5
    assert values["turnable_share_MR"] == 0
    assert "rotation_accuracy_MR" not in values
    # The mean is over the modalities with turnable crops.
    ct_only = evaluate(model, {**batch, "mr_turnable": every, "ct_turnable": none}, configuration, 0, None)
    assert values["rotation"] > 0.5
    assert ct_only.scalars()["rotation"] > 0.5


def test_a_batch_without_turnable_crops_trains_all_but_the_rotation_head():
    configuration = tiny()
    model = PretrainingModel(configuration)
    none = torch.zeros(2, dtype=torch.bool)
    result = evaluate(model, {**synthetic_batch(), "ct_turnable": none, "mr_turnable": none}, configuration, 0, None)
    assert result.losses["rotation"].item() == 0
    assert not {name for name in result.scalars() if name.startswith("rotation")}
    result.total.backward()
    # DistributedDataParallel waits for a gradient of every parameter.
    assert all((p.grad == 0).all() for p in model.rotation_head.parameters())
    assert any((p.grad != 0).any() for p in model.patch_embed.parameters())


def test_bandwidth_and_floor_are_averaged_in_training_only():
    configuration = tiny()
    model = PretrainingModel(configuration)
    running = {"single_image": torch.tensor([2.0, 0.1])}
    with torch.no_grad():
        trained = evaluate(model, synthetic_batch(), configuration, 0, running)
        validated = evaluate(model, synthetic_batch(), configuration, 0, running, validation=True)
    bandwidth, floor = trained.averages["single_image"].tolist()
    assert bandwidth == pytest.approx(0.9 * 2.0 + 0.1 * trained.health["bandwidth"].item())
    assert floor == pytest.approx(0.9 * 0.1 + 0.1 * math.log(2) * trained.health["floor_single_image"].item())
    assert set(trained.averages) == {"single_image", "paired", "stage_1"}
    assert validated.averages is running


def test_densities_are_matched_where_the_encoder_is_deployed():
    """Matching only the densities of pairs left single images no gradient."""
    configuration = tiny(density_levels=("single_image",), tasks=("inpainting",))
    torch.manual_seed(0)
    model = PretrainingModel(configuration)
    loss = evaluate(model, synthetic_batch(), configuration, 0, None).losses["density"]
    weights = model.encoder.domain_invariance.ct_block.layers[0].value.weight
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().sum() > 0


def test_density_is_the_mean_over_the_levels_above_their_floors():
    configuration = tiny(density_levels=("paired", "stages"))
    with torch.no_grad():
        result = evaluate(PretrainingModel(configuration), synthetic_batch(), configuration, 0, None)
    divergences = [result.health[f"divergence_{level}"] * math.log(2) for level in ("paired", "stage_1")]
    # Without averages of earlier steps there is no floor yet.
    assert result.losses["density"].item() == pytest.approx(sum(divergences).item() / 2, rel=1e-4)


def test_validation_measures_all_levels_whatever_is_matched():
    configuration = tiny(density_weight=0.0)
    with torch.no_grad():
        result = evaluate(PretrainingModel(configuration), synthetic_batch(), configuration, 0, None, validation=True)
    for level in ("paired", "single_image", "stage_1"):
        assert {f"divergence_{level}", f"floor_{level}", f"rank_{level}"} <= set(result.health)
    assert 0 < result.health["rank_stage_0"] <= 1
    assert {"attention_entropy", "attention_difference", "dim_change"} <= set(result.health)


@pytest.mark.parametrize("head", ["linear", "network"])
def test_padding_is_left_out_of_the_inpainting_loss(head):
    configuration = tiny(inpainting_head=head, visible_weight=0.0)
    batch = synthetic_batch()
    inside = batch["ct_inside"].clone()
    inside[:, 0, 1], inside[:, 2, 0] = 12, 5
    batch = {**batch, "ct_inside": inside, "mr_inside": inside, "ct_turnable": ~batch["ct_turnable"]}
    batch["mr_turnable"] = batch["ct_turnable"]
    for name in ("ct", "mr"):
        batch[name][:, :, 12:] = batch[name][..., :5] = -9.0
    torch.manual_seed(0)
    result = evaluate(PretrainingModel(configuration), batch, configuration, 0, None)
    errors = []
    for view in result.views.values():
        target, mask = view.target[:, :, :12, :, 5:], view.mask[:, :, :12, :, 5:]
        # Before the first step the reconstruction is 0, or with the network's decoder the mean of what is visible.
        fills = [t[~m].mean() if head == "network" else 0.0 for t, m in zip(target, mask, strict=True)]
        errors.append(torch.cat([t[m] - fill for t, m, fill in zip(target, mask, fills, strict=True)]).abs().mean())
    assert result.losses["inpainting"].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


def test_random_contrasts_do_not_turn_background_into_tissue(monkeypatch):
    """Which tokens show tissue is a matter of the crop, not of the contrast that it is rendered in."""
    configuration = tiny(random_contrast=1.0, quarter_turns=False, tasks=("inpainting",))
    batch = synthetic_batch()
    for name in ("ct", "mr"):
        # Tissue at the minimum and the maximum, and a background that is neither.
        batch[name] = torch.randn(batch[name].shape, generator=torch.Generator().manual_seed(0))
        batch[name][..., :8] = 0
    found = []

    def recorded(image, grid):
        tissue = foreground_tokens(image, grid)
        found.append(tissue.reshape(-1, *grid))
        return tissue

    monkeypatch.setattr(token_statistics, "foreground_tokens", recorded)
    with torch.no_grad():
        result = evaluate(PretrainingModel(configuration), batch, configuration, 0, None, validation=True)
    assert all((view.target - view.unrendered).abs().max() > 0.1 for view in result.views.values())
    assert found
    for tissue in found:
        background, body = tissue.chunk(2, dim=-1)
        assert body.all()
        assert not background.any()


def test_validation_reconstructs_single_images():
    """What validation reports is what fine-tuning gets: the partner of a crop must not matter."""
    configuration = tiny()
    torch.manual_seed(0)
    model = PretrainingModel(configuration).eval()
    batch = synthetic_batch()
    other = {**batch, "mr": batch["mr"].flip(0) + 1}
    with torch.no_grad():
        first, second = (
            evaluate(model, b, configuration, 0, None, validation=True).health["masked_error_CT"]
            for b in (batch, other)
        )
    assert first.item() == pytest.approx(second.item(), rel=1e-5)
