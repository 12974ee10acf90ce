import math

import pytest
import torch

from pretraining.losses.rotation import rotation_accuracy, rotation_loss


def test_chance_costs_the_logarithm_of_four():
    turns = torch.tensor([0, 1, 2, 3])
    assert rotation_loss(torch.zeros(4, 4), turns).item() == pytest.approx(math.log(4))


def test_right_answers_are_free_and_counted():
    turns = torch.tensor([3, 0, 2])
    logits = 50.0 * torch.nn.functional.one_hot(turns, 4)
    assert rotation_loss(logits, turns).item() == pytest.approx(0.0, abs=1e-6)
    assert rotation_accuracy(logits, turns) == 1.0
    assert rotation_accuracy(logits, (turns + 1) % 4) == 0.0


def test_gradients():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: rotation_loss(values, torch.tensor([0, 3, 1])), (logits,))
