import numpy as np
import pytest
import torch

from pretraining.losses.coral import coral


def test_is_the_distance_of_numpys_covariances():
    first, second = np.random.default_rng(0).normal(size=(2, 40, 5))
    second = second[:30] * [1, 2, 3, 4, 5]
    expected = np.square(np.cov(first.T) - np.cov(second.T)).sum() / (4 * 25)
    assert coral(torch.from_numpy(first), torch.from_numpy(second)).item() == pytest.approx(expected)


def test_equal_sets_in_any_order_have_none_and_only_spread_counts():
    samples = torch.randn(50, 4, dtype=torch.float64)
    assert coral(samples, samples[torch.randperm(50)]).item() == pytest.approx(0, abs=1e-20)
    # Its known blindness: a shift changes no covariance.
    assert coral(samples, samples + 7).item() == pytest.approx(0, abs=1e-20)
    values = [coral(samples, scale * samples).item() for scale in (1.0, 1.5, 2.0, 4.0)]
    assert values == sorted(values)
    assert values[1] > 0.01


def test_gradients():
    first, second = torch.randn(2, 6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(coral, (first.requires_grad_(), second[:4].clone().requires_grad_()))
