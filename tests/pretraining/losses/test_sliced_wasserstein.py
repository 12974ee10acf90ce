import math

import pytest
import torch
from scipy.stats import wasserstein_distance as scipys

from pretraining.losses.sliced_wasserstein import sliced_wasserstein, wasserstein_distance


@pytest.mark.parametrize("counts", [(30, 30), (30, 17), (2, 9)])
def test_columns_have_scipys_distances(counts):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(count, 4, generator=generator, dtype=torch.float64) for count in counts)
    # Ties within and between the sets.
    second[:2] = first[:2]
    expected = [scipys(first[:, column].numpy(), second[:, column].numpy()) for column in range(4)]
    assert wasserstein_distance(first, second).tolist() == pytest.approx(expected)


def test_a_shifted_set_is_as_far_as_its_projections_are():
    samples = torch.randn(60, 3, dtype=torch.float64)
    shift = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    distance = sliced_wasserstein(samples, samples + shift, 4000, torch.Generator().manual_seed(0)).item()
    # The mean of |cos| over directions of three dimensions is 1/2.
    assert distance == pytest.approx(2.0 * 0.5, rel=0.03)


def test_equal_sets_in_any_order_have_none_and_a_shift_grows():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(300, 8, generator=generator) for _ in range(2))

    def distance(one, other):
        return sliced_wasserstein(one, other, generator=torch.Generator().manual_seed(1)).item()

    assert distance(first, first[torch.randperm(300)]) == pytest.approx(0, abs=1e-6)
    values = [distance(first, second + shift) for shift in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert values == sorted(values)
    assert 0 < values[0] < 0.15
    shuffled = distance(first[torch.randperm(300)], second[torch.randperm(300)])
    assert math.isclose(shuffled, values[0], rel_tol=1e-4)


@pytest.mark.parametrize("counts", [(6, 6), (6, 4)])
def test_gradients(counts):
    first, second = (torch.randn(count, 3, dtype=torch.float64, requires_grad=True) for count in counts)
    assert torch.autograd.gradcheck(
        lambda a, b: sliced_wasserstein(a, b, 5, torch.Generator().manual_seed(2)), (first, second)
    )
