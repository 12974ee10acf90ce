import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_swinfuse.architecture.domain_invariance import (
    CoAttentionLayer,
    DomainInvariance,
    DomainInvarianceSettings,
    position_encoding,
)
from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.swin_encoder import SwinEncoder


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = DomainInvariance(12, 2, DomainInvarianceSettings(layers=2, max_tokens=40))
    torch.nn.init.normal_(module.proj.weight)
    return module


def test_any_map_goes_through_and_keeps_its_shape(module):
    for shape in [(4, 4, 4), (3, 10, 7), (1, 1, 1), (20, 2, 9)]:
        x = torch.randn(2, 12, *shape)
        assert module(x).shape == x.shape
        fused = module.forward_pair(x, x + 1)
        assert fused.ct.shape == fused.mr.shape == x.shape
        assert fused.ct_tokens.shape[1] <= 40


def test_queries_of_one_modality_attend_to_the_other(module):
    ct, mr = torch.randn(2, 1, 12, 4, 4, 4)
    base = module.forward_pair(ct, mr)
    other_mr = module.forward_pair(ct, torch.randn_like(mr))
    assert not torch.allclose(base.ct, other_mr.ct)
    # A CT block that saw its own tokens only would be what a single CT image gives it.
    assert not torch.allclose(base.ct_tokens, module.forward_pair(ct, ct).ct_tokens)


def test_single_image_is_the_average_of_both_blocks(module):
    x = torch.randn(1, 12, 3, 3, 3)
    tokens, positions, _ = module.pool(x)
    mean = (module.ct_block(tokens, tokens, positions)[0] + module.mr_block(tokens, tokens, positions)[0]) / 2
    expected = x + module.proj(module.norm(mean)).transpose(1, 2).unflatten(2, (3, 3, 3))
    torch.testing.assert_close(module(x), expected)


def test_a_sample_does_not_depend_on_its_batch(module):
    ct, mr = torch.randn(2, 3, 12, 4, 5, 4)
    together = module.forward_pair(ct, mr)
    alone = module.forward_pair(ct[1:2], mr[1:2])
    torch.testing.assert_close(together.ct[1:2], alone.ct)
    torch.testing.assert_close(together.mr[1:2], alone.mr)


def test_context_is_a_set_when_positions_are_left_out():
    layer = CoAttentionLayer(12, 3, 2.0).double()
    tokens, context = torch.randn(1, 5, 12).double(), torch.randn(1, 9, 12).double()
    order = torch.randperm(9)
    torch.testing.assert_close(layer(tokens, context, None)[0], layer(tokens, context[:, order], None)[0])
    with_positions = position_encoding((1, 3, 3), (1, 1, 1), 12, tokens.device).double()
    moved = layer(tokens[:, :1].expand(-1, 9, -1), context[:, order], with_positions)[0]
    assert not torch.allclose(moved, layer(tokens[:, :1].expand(-1, 9, -1), context, with_positions)[0])


def test_weights_are_probabilities_and_do_not_change_the_output(module):
    ct, mr = torch.randn(2, 2, 12, 3, 3, 3)
    asked = module.forward_pair(ct, mr, need_weights=True)
    assert len(asked.ct_weights) == len(asked.mr_weights) == 2
    for weights in asked.ct_weights + asked.mr_weights:
        assert weights.shape == (2, 2, 27, 27)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 27))
    silent = module.forward_pair(ct, mr)
    assert silent.ct_weights == []
    torch.testing.assert_close(asked.ct, silent.ct)


def test_positions_are_distinct_and_do_not_move_with_pooling():
    fine = position_encoding((8, 8, 8), (1, 1, 1), 48, torch.device("cpu"))
    assert torch.cdist(fine, fine).fill_diagonal_(1).min() > 0.01
    coarse = position_encoding((4, 4, 4), (2, 2, 2), 48, torch.device("cpu")).reshape(4, 4, 4, 48)
    means = fine.reshape(8, 8, 8, 48)[:2, :2, :2].mean((0, 1, 2))
    # A pooled cell lies between the cells it was made of: nearer to them than to its neighbour.
    assert (coarse[0, 0, 0] - means).norm() < (coarse[1, 0, 0] - means).norm()


def test_different_sizes_are_refused(module):
    with pytest.raises(ValueError, match="same shape"):
        module.forward_pair(torch.zeros(1, 12, 2, 2, 2), torch.zeros(1, 12, 2, 2, 3))


def test_gradients():
    torch.manual_seed(0)
    module = DomainInvariance(4, 2, DomainInvarianceSettings(layers=1, max_tokens=4)).double()
    ct, mr = torch.randn(2, 1, 4, 2, 2, 2, dtype=torch.float64)
    run = lambda ct, mr: module.forward_pair(ct, mr)[:4]  # noqa: E731
    assert torch.autograd.gradcheck(run, (ct.requires_grad_(), mr.requires_grad_()))


def test_default_costs_at_most_half_of_the_swin_stages_at_96():
    with torch.device("meta"):
        encoder = SwinEncoder(EncoderSettings(), [(2, 2, 2)] * 4)
        embedding = torch.zeros(1, 48, 48, 48, 48)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(embedding)
    whole = counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.domain_invariance(embedding)
    assert counter.get_total_flops() <= 0.5 * (whole - counter.get_total_flops())
