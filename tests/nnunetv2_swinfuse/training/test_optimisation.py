import pytest
import torch
from torch import nn

from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet, plans_architecture
from nnunetv2_swinfuse.training.optimisation import WarmupPolynomial, build_optimizer
from nnunetv2_swinfuse.training.settings import FineTuningSettings

from .conftest import SETTINGS


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
