import pytest
import torch
from torch import nn

from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from nnunetv2_swinfuse.training.optimisation import WarmupPolynomial, build_optimizer
from nnunetv2_swinfuse.training.pretrained_part import pretrained_layers
from nnunetv2_swinfuse.training.settings import FineTuningSettings

from .workshop import SETTINGS


@pytest.fixture
def network():
    return SwinFUSEUNet(1, 2, **plans_architecture([[1, 1, 1], *[[2, 2, 2]] * 2], SETTINGS)["arch_kwargs"])


def test_norms_biases_and_position_biases_do_not_decay(network):
    decayed, kept = build_optimizer(network, FineTuningSettings(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    kept_names = {names[id(parameter)] for parameter in kept["params"]}
    assert {name for name in names.values() if name.endswith((".bias", "relative_position_bias"))} <= kept_names
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_the_rate_rises_to_its_peak_and_falls_as_nnunets():
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=0.1)
    schedule = WarmupPolynomial(optimizer, epochs=100, warmup_epochs=5)
    rates = []
    for epoch in range(100):
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:6] == pytest.approx([0.1 * n / 6 for n in range(1, 7)])
    assert rates[5] == max(rates)
    assert rates[5:] == pytest.approx([0.1 * (1 - n / 95) ** 0.9 for n in range(95)])
    assert rates[-1] > 0


def test_a_resumed_schedule_continues_whatever_was_stepped_before():
    def rate_of(epochs):
        optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=0.1)
        schedule = WarmupPolynomial(optimizer, 20, 3)
        for epoch in epochs:
            schedule.step(epoch)
        return optimizer.param_groups[0]["lr"]

    assert rate_of(range(13)) == rate_of([12]) == rate_of([19, 2, 12])


def test_groups_keep_their_proportion():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([{"params": first.parameters(), "lr": 0.1}, {"params": second.parameters()}], lr=0.2)
    WarmupPolynomial(optimizer, 10, 0).step(4)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(2 * optimizer.param_groups[0]["lr"])


def test_gradients_are_clipped_in_every_step():
    layer = nn.Linear(4, 4)
    optimizer = build_optimizer(layer, FineTuningSettings(gradient_clip=0.5))
    (1000 * layer(torch.randn(3, 4))).sum().backward()
    optimizer.step()
    norm = torch.stack([parameter.grad.norm() for parameter in layer.parameters()]).norm()
    assert norm == pytest.approx(0.5, rel=1e-4)


def test_pretrained_layers_train_the_slower_the_nearer_the_image(network):
    settings = FineTuningSettings(initial_lr=1e-3, layer_decay=0.5, weight_decay=0.3)
    optimizer = build_optimizer(network, settings, pretrained_layers(network, 1))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(names)
    # The network has one Swin stage: patch embedding, module, stage.
    assert rates["patch_embed.proj.weight"] == rates["patch_embed.proj.bias"] == pytest.approx(1e-3 / 8)
    assert rates["encoder.domain_invariance.proj.weight"] == pytest.approx(1e-3 / 4)
    assert rates["encoder.stages.0.merging.reduction.weight"] == pytest.approx(1e-3 / 2)
    assert {rate for name, rate in rates.items() if not name.startswith(("patch_embed.", "encoder."))} == {1e-3}
    # nnU-Net logs the rate of the first group.
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}
    WarmupPolynomial(optimizer, 10, 2).step(0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 3)
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(1e-3 / 8 / 3)


@pytest.mark.parametrize("settings", [FineTuningSettings(), FineTuningSettings(layer_decay=1.0)])
def test_one_rate_where_nothing_was_pretrained_or_nothing_decays(network, settings):
    layers = pretrained_layers(network, 1) if settings.layer_decay == 1 else {}
    groups = build_optimizer(network, settings, layers).param_groups
    assert [group["lr"] for group in groups] == [settings.initial_lr] * 2


def test_after_linear_probing_the_pretrained_part_warms_up_of_its_own(network):
    settings = FineTuningSettings(initial_lr=1.0, layer_decay=1.0, linear_probe_epochs=4)
    optimizer = build_optimizer(network, settings, pretrained_layers(network, 1))
    schedule = WarmupPolynomial(optimizer, epochs=12, warmup_epochs=2)
    new, pretrained = [], []
    for epoch in range(12):
        schedule.step(epoch)
        new.append(optimizer.param_groups[0]["lr"])
        pretrained.append(optimizer.param_groups[-1]["lr"])
    assert pretrained[:4] == [0, 0, 0, 0]
    assert pretrained[4:7] == pytest.approx([new[4] / 3, new[5] * 2 / 3, new[6]])
    assert pretrained[6:] == pytest.approx(new[6:])
