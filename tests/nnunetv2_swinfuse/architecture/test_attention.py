import itertools

import pytest
import torch

from nnunetv2_swinfuse.architecture.attention import WindowAttention, relative_position_index
from nnunetv2_swinfuse.architecture.topology import clamp_window


def attend_by_definition(attention: WindowAttention, x: torch.Tensor, shifted: bool) -> torch.Tensor:
    """One query at a time, in the coordinates of the unshifted map: the oracle."""
    shape = x.shape[1:4]
    window, shift = clamp_window(tuple(shape), attention.window_size, shifted)
    padded_shape = [-(-s // w) * w for s, w in zip(shape, window, strict=True)]
    padded = x.new_zeros(x.shape[0], *padded_shape, x.shape[4])
    padded[:, : shape[0], : shape[1], : shape[2]] = x
    query, key, value = attention.qkv(padded).chunk(3, -1)
    heads, width = attention.num_heads, x.shape[4] // attention.num_heads
    table = attention.relative_position_bias
    full = attention.window_size
    out = torch.zeros_like(padded)

    def cell(position):
        # The window a position falls in after the shift; wrapped parts are windows of their own.
        return tuple(((p - s) // w) if p >= s else -1 for p, s, w in zip(position, shift, window, strict=True))

    positions = list(itertools.product(*map(range, padded_shape)))
    for query_at in positions:
        mates = [key_at for key_at in positions if cell(key_at) == cell(query_at)]
        rows = []
        for key_at in mates:
            offset = [h - t + f - 1 for h, t, f in zip(query_at, key_at, full, strict=True)]
            rows.append((offset[0] * (2 * full[1] - 1) + offset[1]) * (2 * full[2] - 1) + offset[2])
        bias = table[rows].T
        keys = torch.stack([key[(slice(None), *key_at)] for key_at in mates], 1).unflatten(-1, (heads, width))
        values = torch.stack([value[(slice(None), *key_at)] for key_at in mates], 1).unflatten(-1, (heads, width))
        q = query[(slice(None), *query_at)].unflatten(-1, (heads, width))
        logits = torch.einsum("bhd,bnhd->bhn", q, keys) / width**0.5 + bias
        out[(slice(None), *query_at)] = torch.einsum("bhn,bnhd->bhd", logits.softmax(-1), values).flatten(1)
    return attention.proj(out)[:, : shape[0], : shape[1], : shape[2]]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 4), (6, 5, 4), (2, 4, 7), (3, 3, 3), (1, 6, 2)])
def test_equals_attention_written_out_by_definition(shape, shifted):
    torch.manual_seed(1)
    attention = WindowAttention(8, 2, (4, 4, 4)).double()
    torch.nn.init.normal_(attention.relative_position_bias)
    x = torch.randn(2, *shape, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = attend_by_definition(attention, x, shifted)
        torch.testing.assert_close(attention(x, shifted), expected)
    # Where gradients are recorded, other kernels are at work.
    torch.testing.assert_close(attention(x, shifted), expected)


def test_clamped_windows_use_the_bias_of_the_true_offsets():
    full = relative_position_index((5, 5, 5), (5, 5, 5)).reshape(5, 5, 5, 5, 5, 5)
    clamped = relative_position_index((2, 5, 3), (5, 5, 5)).reshape(2, 5, 3, 2, 5, 3)
    assert torch.equal(clamped, full[:2, :, :3, :2, :, :3])
    assert full.max() == 9**3 - 1
    assert full.min() == 0


def test_gradients():
    torch.manual_seed(0)
    attention = WindowAttention(4, 2, (2, 2, 2)).double()
    x = torch.randn(1, 3, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(attention.parameters())
    names = [name for name, _ in attention.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (x, True))

    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_training_goes_on_after_inference_mode():
    attention = WindowAttention(4, 2, (2, 2, 2))
    # A shape of its own: the layout of its windows is not cached yet.
    x = torch.randn(3, 6, 4, 4, 4)
    with torch.inference_mode():
        inferred = attention(x, True)
    output = attention(x, True)
    torch.testing.assert_close(output, inferred)
    output.square().sum().backward()
    assert attention.relative_position_bias.grad.abs().max() > 0
