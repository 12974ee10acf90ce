import pytest
import torch

from pretraining.losses.consistency import consistency, intraclass_correlation, view_moments
from pretraining.model import PretrainingModel
from pretraining.processes import SINGLE_PROCESS
from pretraining.proxy_tasks import proxy_tasks

from .synthetic import synthetic_batch, tiny
from .test_view_pairs import views_of

ALL_TRUE = torch.ones(2, dtype=torch.bool)
TURNABLE = {"CT": ALL_TRUE, "MR": ALL_TRUE}


def run(configuration, registered=ALL_TRUE, turnable=TURNABLE, padding=0):
    """Views, outputs and results of a batch; of all crops the last `padding` layers along z are padding."""
    torch.manual_seed(0)
    model = PretrainingModel(configuration).eval()
    views = views_of(configuration, synthetic_batch(len(registered)))
    for view in views.views.values():
        view.inside[:, :, 16 - padding :] = False
    outputs = model({name: v.corrupted for name, v in views.views.items()}, views.paired_count, views.partners)
    return views.views, outputs, proxy_tasks(views.views, outputs, turnable, registered, configuration, SINGLE_PROCESS)


def test_distillation_teaches_the_single_image_only():
    views, outputs, results = run(tiny(distillation_weight=1.0))
    deep = outputs.features["CT"][1]
    (gradient,) = torch.autograd.grad(results.losses["distillation"], deep)
    assert gradient[:2].abs().max() == 0 < gradient[2:].abs().max()
    expected = [
        consistency(*maps.chunk(2), *views[name].turns.chunk(2)).mean() for name, (_, maps) in outputs.features.items()
    ]
    assert results.losses["distillation"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["vicreg", "correlation", "adjusted_correlation"])
def test_losses_without_negatives_have_a_gradient_to_both_views(loss):
    _, outputs, results = run(tiny(contrastive_loss=loss))
    (gradient,) = torch.autograd.grad(results.losses["contrastive"], outputs.features["CT"][1])
    assert gradient[:2].abs().max() > 0 < gradient[2:].abs().max()


@pytest.mark.parametrize("loss", ["nt_xent", "vicreg", "correlation", "adjusted_correlation"])
def test_ct_is_matched_with_mr_by_views_that_have_not_seen_each_other(loss):
    _, outputs, results = run(tiny(contrastive_loss=loss))
    assert outputs.pair is not None
    vectors = outputs.predictions["CT"].projection if loss == "nt_xent" else outputs.features["CT"][1]
    (gradient,) = torch.autograd.grad(results.losses["cross_modal"], vectors)
    # The first views contain their partner, which is the other modality of the pair.
    assert gradient[:2].abs().max() == 0 < gradient[2:].abs().max()


@pytest.mark.parametrize("loss", ["nt_xent", "vicreg", "correlation", "adjusted_correlation"])
def test_no_registered_pair_no_cross_modal_loss(loss):
    _, _, results = run(tiny(contrastive_loss=loss), registered=~ALL_TRUE)
    assert "cross_modal" not in results.losses
    assert "cross_modal_icc" not in results.health


def test_the_correlation_counts_registered_crops_only():
    """Of two registered crops, one; its value is that of the stages after the finest, second views."""
    registered = torch.tensor([True, False])
    views, outputs, results = run(tiny(contrastive_loss="vicreg"), registered=registered)
    turns = [views[name].turns[2:3] for name in ("CT", "MR")]
    by_stage = [
        intraclass_correlation(view_moments(ct[2:3], mr[2:3], *turns))
        for ct, mr in list(zip(outputs.features["CT"], outputs.features["MR"], strict=True))[1:]
    ]
    assert results.health["cross_modal_icc"].item() == pytest.approx(torch.stack(by_stage).mean().item(), abs=1e-5)
    assert -1 <= results.health["contrastive_icc"].item() <= 1


@pytest.mark.parametrize(("relative", "measure"), [("correlation", "icc"), ("adjusted_correlation", "icc_adjusted")])
def test_one_minus_the_correlation_is_a_loss(relative, measure):
    """With gradients of its own; the correlation is recorded with any loss."""
    losses = {}
    for loss in ("vicreg", relative):
        _, outputs, results = run(tiny(contrastive_loss=loss))
        for name in ("contrastive", "cross_modal"):
            (gradient,) = torch.autograd.grad(results.losses[name], outputs.features["CT"][1], retain_graph=True)
            losses[loss, name] = results.losses[name].item(), results.health[f"{name}_{measure}"].item(), gradient
    for name in ("contrastive", "cross_modal"):
        value, correlation, gradient = losses[relative, name]
        assert value == pytest.approx(1 - correlation, abs=1e-6)
        assert correlation == pytest.approx(losses["vicreg", name][1], abs=1e-6)
        assert not torch.allclose(gradient, losses["vicreg", name][2])


def test_a_single_crop_has_no_other_to_be_compared_with():
    one = torch.ones(1, dtype=torch.bool)
    _, _, results = run(tiny(contrastive_loss="correlation"), registered=one, turnable={"CT": one, "MR": one})
    assert {"contrastive_icc", "cross_modal_icc"} <= results.health.keys()
    assert not [name for name in results.health if name.endswith("_adjusted")]


@pytest.mark.parametrize("places", ["all", "visible"])
@pytest.mark.parametrize("loss", ["vicreg", "correlation", "adjusted_correlation"])
def test_what_is_cut_out_of_either_view_is_compared_only_with_all_places(loss, places):
    """Cells are as large as a token of the second stage: a token is cut out as a whole or not at all."""
    views, outputs, results = run(tiny(contrastive_loss=loss, compared_places=places, quarter_turns=False))
    for name in ("contrastive", "cross_modal"):
        (gradient,) = torch.autograd.grad(results.losses[name], outputs.features["CT"][1], retain_graph=True)
        gradient = gradient[2:].abs().sum(1)
        cut_out = {modality: _cut_out(view, gradient) for modality, view in views.items()}
        other = cut_out["CT"][:2] if name == "contrastive" else cut_out["MR"][2:]
        hidden = cut_out["CT"][2:] | other
        assert 0 < hidden.sum() < hidden.numel()
        assert (gradient[~hidden] > 0).all()
        assert (gradient[hidden] == 0).all() if places == "visible" else (gradient[hidden] > 0).all()


def test_crops_that_cannot_be_turned_take_no_part_in_the_rotation_task():
    turnable = {"CT": ~ALL_TRUE, "MR": ALL_TRUE}
    _, _, results = run(tiny(), turnable=turnable)
    assert results.health["turnable_share_CT"] == 0
    assert "rotation_accuracy_CT" not in results.health
    assert "rotation_accuracy_MR" in results.health
    _, _, none = run(tiny(), turnable={"CT": ~ALL_TRUE, "MR": ~ALL_TRUE})
    assert none.losses["rotation"].item() == 0
    assert "rotation_accuracy" not in none.health


@pytest.mark.parametrize("padding", [0, 4, 9])
def test_what_is_cut_out_is_compared_with_the_mean_fill(padding):
    views, outputs, results = run(tiny(visible_weight=0.0), padding=padding)
    box = (slice(None), slice(None), slice(16 - padding))
    errors = {}
    for name, view in views.items():
        error = (outputs.predictions[name].reconstruction - view.target)[box][view.mask[box]].abs().mean()
        errors[name] = error.item()
        assert results.health[f"masked_error_{name}"].item() == pytest.approx(error.item(), rel=1e-5)
    assert results.losses["inpainting"].item() == pytest.approx((errors["CT"] + errors["MR"]) / 2, rel=1e-5)
    ct = views["CT"]
    fills = [t[~m].mean() - t[m] for t, m in zip(ct.target[box], ct.mask[box], strict=True)]
    expected = torch.cat(fills).abs().mean()
    assert results.health["masked_error_of_mean_CT"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("contrastive_loss", ["vicreg", "correlation"])
@pytest.mark.parametrize("loss", ["inpainting", "contrastive", "cross_modal", "distillation"])
def test_padding_has_no_part_in_losses_that_compare_voxels_or_maps(loss, contrastive_loss):
    configuration = tiny(contrastive_loss=contrastive_loss, distillation_weight=1.0, visible_weight=0.5)
    _, outputs, results = run(configuration, padding=8)
    of_maps = loss != "inpainting"
    compared = outputs.features["CT"][1] if of_maps else outputs.predictions["CT"].reconstruction
    (gradient,) = torch.autograd.grad(results.losses[loss], compared)
    inside, padding = gradient.chunk(2, dim=2)
    assert padding.abs().max() == 0 < inside.abs().max()


def test_the_synthetic_batch_is_registered():
    assert synthetic_batch()["registered"].all()


def _cut_out(view, maps):
    """Which tokens of the maps are cut out, bool (B, z, y, x)."""
    sizes = [voxels // tokens for voxels, tokens in zip(view.mask.shape[2:], maps.shape[1:], strict=True)]
    return torch.nn.functional.max_pool3d(view.mask.float(), sizes)[:, 0] > 0
