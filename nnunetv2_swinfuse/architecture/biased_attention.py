"""Exact attention of many windows under one learned bias, on the CPU without holding all attention matrices.

torch's fused CPU kernel takes no bias that needs a gradient: it falls back to the full matrix, (windows, heads, N, N)
several times over. There the backward pass is written out here: a few windows at a time, attention is computed again
and the bias' gradient is summed over the windows at once.

On CUDA torch's memory-efficient kernel does the whole work. It keeps no attention matrix either, but its backward pass
returns the bias' gradient for every window and head, (windows, heads, N, N), before autograd sums it: for one block at
a time 242 MB a sample in float16, at 96 x 96 x 96 voxels with windows of 7. `planning/memory.py` counts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunetv2_swinfuse.architecture.windows import WindowGroup

# Entries of the attention matrices computed together in the backward pass: many enough for the cores of a workstation,
# few enough for its last-level cache.
CHUNK_ENTRIES = 1 << 21


def biased_attention(qkv: Tensor, bias: Tensor, groups: Sequence[WindowGroup]) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v within each window.

    Args:
        qkv: (windows, N, 3, heads, D), queries, keys and values.
        bias: (heads, N, N), shared by all windows.
        groups: the windows in order, and the pairs that must not attend to each other.

    Returns:
        (windows, N, heads, D).
    """
    # A fused CUDA kernel gave silently wrong results for a bias of another type than the queries'.
    bias = bias.to(qkv.dtype)
    learned = torch.is_grad_enabled() and bias.requires_grad
    if learned and qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        return RecomputedAttention.apply(qkv, bias, groups)
    return _attend(qkv, bias, groups)


def _attend(qkv: Tensor, bias: Tensor, groups: Sequence[WindowGroup]) -> Tensor:
    results = []
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    for windows, masked in _masked(bias, groups):
        operands = (part[windows] for part in (query, key, value))
        results.append(F.scaled_dot_product_attention(*operands, attn_mask=masked[None]).transpose(1, 2))
    # ONNX export decomposes attention into operations that leave another memory layout than the fused kernel's, and
    # fails at the next view of its output unless that was copied.
    single_group = len(results) == 1 and not torch.compiler.is_compiling()
    return results[0] if single_group else torch.cat(results)


def _masked(bias: Tensor, groups: Sequence[WindowGroup]) -> Iterator[tuple[slice, Tensor]]:
    """The windows of each group, and the bias with -inf where attention is masked."""
    first = 0
    for group in groups:
        masked = bias if group.separated is None else bias.masked_fill(group.separated, float("-inf"))
        yield slice(first, first + group.windows), masked
        first += group.windows


class RecomputedAttention(torch.autograd.Function):
    """:func:`biased_attention` whose backward pass computes the attention matrices again, some windows at a time."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, groups: Sequence[WindowGroup]) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        ctx.groups = groups
        # The kernel refuses a bias that requires a gradient even where none is recorded.
        return _attend(qkv, bias.detach(), groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """With P the attention and dP = dO V^T: dV = P^T dO, dS = P (dP - sum(P dP)), dQ = dS K, dK = dS^T Q."""
        qkv, bias = ctx.saved_tensors
        heads = bias.shape[0]
        scale = qkv.shape[-1] ** -0.5
        # Half-precision attention is summed in single precision, as fused kernels do.
        exact = torch.promote_types(qkv.dtype, torch.float32)
        qkv_gradient = torch.empty_like(qkv)
        bias_gradient = torch.zeros_like(bias, dtype=exact)
        step = max(1, CHUNK_ENTRIES // bias.numel())
        for windows, masked in _masked(bias.to(exact), ctx.groups):
            for first in range(windows.start, windows.stop, step):
                chunk = slice(first, min(first + step, windows.stop))
                parts = (*qkv[chunk].unbind(2), gradient[chunk])
                # Contiguous (windows * heads, N, D): strided operands cost the products more than the copy.
                query, key, value, out = (part.transpose(1, 2).to(exact).flatten(0, 1) for part in parts)
                query = query * scale
                weights = torch.bmm(query, key.transpose(1, 2)).unflatten(0, (-1, heads)).add_(masked)
                weights = weights.softmax(-1).flatten(0, 1)
                product = torch.bmm(out, value.transpose(1, 2))
                dlogits = torch._softmax_backward_data(product, weights, -1, exact)
                bias_gradient += dlogits.unflatten(0, (-1, heads)).sum(0)
                gradients = (
                    torch.bmm(dlogits, key) * scale,
                    torch.bmm(dlogits.transpose(1, 2), query),
                    torch.bmm(weights.transpose(1, 2), out),
                )
                for part, result in zip(qkv_gradient[chunk].unbind(2), gradients, strict=True):
                    part.copy_(result.unflatten(0, (-1, heads)).transpose(1, 2))
        return qkv_gradient, bias_gradient.to(bias.dtype), None
