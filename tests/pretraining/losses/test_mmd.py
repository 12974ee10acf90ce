import math

import numpy as np
import pytest
import torch

from pretraining.losses.mmd import WIDTHS, maximum_mean_discrepancy


def clouds(shift, count=400, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, channels, generator=generator, dtype=torch.float64) for _ in range(2))
    return first, second + shift


@pytest.mark.parametrize(("width", "shift"), [(0.5, 0.0), (1.0, 0.7), (3.0, 2.0)])
def test_gaussian_clouds_have_the_closed_form(width, shift):
    # E k(x, y) of N(a, I) and N(b, I) is (w^2 / (w^2 + 2))^(D / 2) exp(-|a - b|^2 / (2 (w^2 + 2))).
    first, second = clouds(shift, count=1500)
    square = width**2
    scale = (square / (square + 2)) ** 1.5
    expected = 2 * scale * (1 - math.exp(-3 * shift**2 / (2 * (square + 2))))
    # The biased estimate counts each sample with itself.
    expected += 2 * (1 - scale) / 1500
    assert maximum_mean_discrepancy(first, second, 1.0, [width]).item() == pytest.approx(expected, abs=0.01)


def test_is_what_the_definition_says():
    first, second = clouds(0.5, count=7)
    second = second[:5]

    def kernel(x, y):
        return np.mean([math.exp(-float((x - y).square().sum()) / (2 * (width * 1.3) ** 2)) for width in WIDTHS])

    expected = sum(
        sign * np.mean([kernel(x, y) for x in rows for y in columns])
        for sign, rows, columns in ((1, first, first), (1, second, second), (-2, first, second))
    )
    assert maximum_mean_discrepancy(first, second, 1.3).item() == pytest.approx(expected, rel=1e-9)


def test_equal_sets_in_any_order_have_none_and_a_shift_grows():
    first, _ = clouds(0.0)
    assert maximum_mean_discrepancy(first, first[torch.randperm(400)]).item() == pytest.approx(0, abs=1e-12)
    values = [maximum_mean_discrepancy(*clouds(shift)).item() for shift in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert values == sorted(values)
    assert 0 < values[0] < 2 / 400
    assert values[2] > 20 * values[0]
    assert values[-1] < 2


def test_gradients():
    first, second = clouds(0.3, count=6)
    second = second[:5].clone()
    assert torch.autograd.gradcheck(
        lambda a, b: maximum_mean_discrepancy(a, b, 1.1), (first.requires_grad_(), second.requires_grad_())
    )


def test_collapsed_and_far_clouds_are_finite():
    for other in (torch.zeros(9, 3), torch.full((9, 3), 1e6)):
        samples = torch.zeros(9, 3, requires_grad=True)
        maximum_mean_discrepancy(samples, other).backward()
        assert torch.isfinite(samples.grad).all()
