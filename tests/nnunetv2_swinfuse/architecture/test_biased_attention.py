import pytest
import torch

from nnunetv2_swinfuse.architecture import biased_attention as module
from nnunetv2_swinfuse.architecture.biased_attention import RecomputedAttention, biased_attention
from nnunetv2_swinfuse.architecture.windows import WindowGroup


def inputs(dtype=torch.float64, windows=5, tokens=6, heads=2, width=4):
    torch.manual_seed(0)
    qkv = torch.randn(windows, tokens, 3, heads, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(heads, tokens, tokens, dtype=dtype, requires_grad=True)
    separated = torch.zeros(tokens, tokens, dtype=torch.bool)
    separated[:2, 2:], separated[2:, :2] = True, True
    return qkv, bias, (WindowGroup(windows - 2, None), WindowGroup(2, separated))


def full_matrix(qkv, bias, groups):
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5 + bias
    masks = [
        torch.zeros_like(bias[0]) if g.separated is None else torch.zeros_like(bias[0]).masked_fill(g.separated, -1e9)
        for g in groups
        for _ in range(g.windows)
    ]
    return ((logits + torch.stack(masks)[:, None]).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("chunk_entries", [1, 2 * 72, 1 << 20])
def test_equals_the_full_matrix_forward_and_backward(chunk_entries, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ENTRIES", chunk_entries)
    qkv, bias, groups = inputs()
    weight = torch.randn(5, 6, 2, 4, dtype=torch.float64)
    expected = full_matrix(qkv, bias, groups)
    result = biased_attention(qkv, bias, groups)
    assert "RecomputedAttention" in type(result.grad_fn).__name__
    torch.testing.assert_close(result, expected)
    for ours, theirs in zip(
        torch.autograd.grad((result * weight).sum(), (qkv, bias)),
        torch.autograd.grad((expected * weight).sum(), (qkv, bias)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck():
    qkv, bias, groups = inputs(windows=3, tokens=4, width=2)
    assert torch.autograd.gradcheck(lambda q, b: RecomputedAttention.apply(q, b, groups), (qkv, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_its_rounding(dtype):
    qkv, bias, groups = inputs(torch.float32, windows=9, tokens=64)
    groups = (WindowGroup(9, None),)
    expected = full_matrix(qkv, bias, groups)
    weight = torch.randn_like(expected)
    exact = torch.autograd.grad((expected * weight).sum(), (qkv, bias))
    half_qkv = qkv.detach().to(dtype).requires_grad_()
    result = biased_attention(half_qkv, bias, groups)
    assert result.dtype == dtype
    rounded = torch.autograd.grad((result * weight.to(dtype)).sum(), (half_qkv, bias))
    precision = torch.finfo(dtype).eps
    for ours, theirs in zip((result, *rounded), (expected, *exact), strict=True):
        assert (ours.float() - theirs).norm() < 4 * precision * theirs.norm()


def test_a_frozen_bias_needs_no_recomputation():
    qkv, bias, groups = inputs()
    result = biased_attention(qkv, bias.detach(), groups)
    assert "RecomputedAttention" not in type(result.grad_fn).__name__
    torch.testing.assert_close(result, full_matrix(qkv, bias, groups))
