import math

import pytest
import torch

from pretraining.monitoring.feature_rank import effective_rank


def test_effective_rank_counts_directions():
    torch.manual_seed(0)
    tokens = torch.randn(2000, 3) @ torch.randn(3, 20)
    assert 2 < effective_rank(tokens) <= 3.01
    assert effective_rank(torch.randn(4000, 20)) > 19


def test_tokens_that_are_all_alike_have_rank_one():
    assert effective_rank(torch.full((30, 8), 3.0)).item() == pytest.approx(1.0, abs=0.01)


def test_orthogonal_directions_of_equal_size_are_counted():
    tokens = torch.cat([torch.eye(6)[:4], -torch.eye(6)[:4]])
    assert effective_rank(tokens).item() == pytest.approx(4.0, rel=1e-4)


def test_masked_and_infinite_tokens():
    tokens = torch.cat([torch.eye(6)[:4], -torch.eye(6)[:4], torch.full((3, 6), 50.0)])
    assert effective_rank(tokens, (torch.arange(11) < 8).float()).item() == pytest.approx(4.0, rel=1e-4)
    tokens[0, 0] = math.inf
    assert effective_rank(tokens).isfinite()
