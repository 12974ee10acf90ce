import pytest
import torch

from pretraining.losses.vicreg import EPSILON, covariance_loss, variance_loss
from pretraining.monitoring.feature_rank import effective_rank


def test_terms_of_a_known_covariance():
    # Four tokens whose channels have the variances 4/3 and 1/3 and the covariance 2/3.
    tokens = torch.tensor([[1.0, 0.5], [1.0, 0.5], [-1.0, -0.5], [-1.0, -0.5]], dtype=torch.float64)

    assert covariance_loss(tokens).item() == pytest.approx(2 * (2 / 3) ** 2 / 2)
    assert variance_loss(tokens).item() == pytest.approx((0 + 1 - (1 / 3 + EPSILON) ** 0.5) / 2)


def test_uncorrelated_channels_with_enough_variance_cost_nothing():
    tokens = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])

    assert covariance_loss(tokens).item() == pytest.approx(0, abs=1e-12)
    assert variance_loss(tokens).item() == 0


def test_collapsed_tokens_cost_the_most_and_have_finite_gradients():
    tokens = torch.ones(5, 3, requires_grad=True)

    loss = variance_loss(tokens) + covariance_loss(tokens)
    loss.backward()

    assert loss.item() == pytest.approx(1 - EPSILON**0.5)
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("loss", [variance_loss, covariance_loss])
def test_masked_tokens_do_not_count(loss):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(20, 4, generator=generator)
    others = torch.cat([tokens, 100 * torch.randn(7, 4, generator=generator)])

    mask = torch.arange(27) < 20

    assert loss(others, mask).item() == pytest.approx(loss(tokens).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [variance_loss, covariance_loss])
def test_without_tokens_the_loss_is_zero(loss):
    tokens = torch.randn(4, 3, requires_grad=True)

    value = loss(tokens, torch.zeros(4, dtype=torch.bool))
    value.backward()

    assert value.item() == 0
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("loss", [variance_loss, covariance_loss])
def test_gradients(loss):
    tokens = 0.3 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    assert torch.autograd.gradcheck(lambda t: loss(t, torch.arange(6) != 2), tokens.requires_grad_())


def test_minimised_together_they_restore_the_rank():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(64, 1, generator=generator) * torch.ones(1, 6) + 0.01 * torch.randn(64, 6, generator=generator)
    tokens.requires_grad_()
    optimizer = torch.optim.Adam([tokens], lr=0.05)
    assert effective_rank(tokens.detach()) < 1.5
    for _ in range(200):
        optimizer.zero_grad()
        (variance_loss(tokens) + covariance_loss(tokens)).backward()
        optimizer.step()

    assert effective_rank(tokens.detach()) > 5
