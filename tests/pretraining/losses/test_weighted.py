import pytest
import torch

from pretraining.losses.weighted import median_distance, weighted_mean, weighted_variance, weights_of


@pytest.mark.parametrize("count", [2, 7, 30])
def test_samples_of_weight_0_do_not_count(count):
    torch.manual_seed(0)
    samples = torch.randn(30, 3, dtype=torch.float64)
    counted = torch.zeros(30, dtype=torch.bool)
    counted[torch.randperm(30)[:count]] = True
    chosen = samples[counted]
    samples[~counted] = 1e6
    weights = weights_of(samples, counted)
    torch.testing.assert_close(weighted_mean(samples, weights), chosen.mean(0))
    torch.testing.assert_close(weighted_variance(samples, weights), chosen.var(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(median_distance(samples, weights), torch.pdist(chosen).median())


def test_without_a_mask_all_count():
    samples = torch.randn(5, 2)
    assert torch.equal(weights_of(samples, None), torch.ones(5))
