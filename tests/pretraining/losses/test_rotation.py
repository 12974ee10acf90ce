import math

import pytest
import torch

from pretraining.losses.rotation import rotation_accuracy, rotation_loss

ALL = torch.ones(3, dtype=torch.bool)


def test_chance_costs_the_logarithm_of_four():
    turns = torch.tensor([0, 1, 2, 3])
    assert rotation_loss(torch.zeros(4, 4), turns, torch.ones(4, dtype=torch.bool)).item() == pytest.approx(math.log(4))


def test_right_answers_are_free_and_counted():
    turns = torch.tensor([3, 0, 2])
    logits = 50.0 * torch.nn.functional.one_hot(turns, 4)
    assert rotation_loss(logits, turns, ALL).item() == pytest.approx(0.0, abs=1e-6)
    assert rotation_accuracy(logits, turns, ALL) == 1.0
    assert rotation_accuracy(logits, (turns + 1) % 4, ALL) == 0.0


def test_only_turnable_crops_count():
    turns = torch.tensor([0, 1, 2])
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    # The first is right, the last wrong, and the one between does not take part.
    logits[0, 0], logits[1, 1], logits[2, 3] = 9.0, 9.0, 9.0
    some = torch.tensor([True, False, True])
    expected = torch.nn.functional.cross_entropy(logits[some], turns[some])
    torch.testing.assert_close(rotation_loss(logits, turns, some), expected)
    assert rotation_accuracy(logits, turns, some) == 0.5


def test_without_turnable_crops_loss_and_gradients_are_zero():
    logits = torch.randn(3, 4, requires_grad=True)
    none, turns = torch.zeros(3, dtype=torch.bool), torch.tensor([0, 1, 2])
    loss = rotation_loss(logits, turns, none)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 4))
    assert rotation_accuracy(logits, turns, none) == 0


@pytest.mark.parametrize("turnable", [[True, True, True], [True, False, True], [False, False, False]])
def test_gradients(turnable):
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    turns, chosen = torch.tensor([0, 3, 1]), torch.tensor(turnable)
    assert torch.autograd.gradcheck(lambda values: rotation_loss(values, turns, chosen), (logits,))
