"""The instrument itself: what it must see, and that its walk through the graph gives the gradients of PyTorch's."""

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture

from .fake_cuda import CUDA, HiddenRead, backward, fake_cuda

READS = {
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x.sum()),
    "if": lambda x: bool((x > 0).any()),
    "list": lambda x: x.tolist(),
    "boolean mask": lambda x: x[x > 0],
    "boolean mask written": lambda x: x.index_put_((x > 0,), x.flatten()),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "copy": lambda x: x.cpu(),
    "copied into": lambda x: torch.zeros(3, 4).copy_(x),
    "copied to": lambda x: x + torch.ones(3, 4).to(x.device),
    "copied to, converted": lambda x: x + torch.ones(3, 4, dtype=torch.float64).to(x),
    "copied into from the host": lambda x: x.copy_(torch.ones(3, 4)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_is_seen(read):
    with fake_cuda(), pytest.raises(HiddenRead, match=r"test_fake_cuda\.py"):
        read(torch.randn(3, 4, device=CUDA))


def test_reads_of_a_file_that_may_are_listed():
    with fake_cuda(allowed=["test_fake_cuda.py"]) as reads:
        assert torch.ones(3, device=CUDA).sum().item() == 0
        assert torch.equal(torch.ones(2, device=CUDA).cpu(), torch.zeros(2))
    assert len(reads) == 2


def test_two_devices_in_one_operation_are_an_error():
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        torch.randn(3, 4, device=CUDA) + torch.randn(3, 4)


def test_what_needs_no_value_works_and_the_host_keeps_its_values():
    with fake_cuda():
        x = torch.randn(3, 4, device=CUDA)
        x[x > 0] = 0.0
        assert torch.ones(3, 4).to(CUDA, non_blocking=True).device == CUDA
        assert x[torch.tensor([0, 2])].shape == (2, 4)
        assert torch.rand((), generator=torch.Generator().manual_seed(0)).item() > 0
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert (x @ x.T).dtype == torch.bfloat16
        assert (x + 1).device == CUDA


def test_gradients_are_those_of_pytorchs_engine():
    settings = EncoderSettings(
        feature_size=12, depths=(2,), num_heads=(2,), window_size=3,
        domain_invariance={"layers": 1, "max_cells": 64, "mlp_ratio": 2.0},
    )  # fmt: skip
    torch.manual_seed(0)
    network = build_network(plans_architecture([[1, 1, 1], [2, 2, 2], [2, 2, 2]], settings), 1, 2)
    image = torch.randn(1, 1, 16, 16, 16)
    network(image).square().mean().backward()
    expected = [parameter.grad for parameter in network.parameters()]
    network.zero_grad(set_to_none=True)
    backward(network(image).square().mean())
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
