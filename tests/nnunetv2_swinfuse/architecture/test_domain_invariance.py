import math

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_swinfuse.architecture.cell_grid import choose_grid, position_encoding
from nnunetv2_swinfuse.architecture.domain_invariance import (
    CoAttentionLayer,
    DomainInvariance,
    DomainInvarianceSettings,
)


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = DomainInvariance(12, 2, DomainInvarianceSettings(layers=2, max_cells=40))
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


@pytest.mark.parametrize("scale", [0.0, 0.25, 2.0])
def test_the_first_update_has_the_initial_scale_and_can_grow(scale):
    def build(scale):
        torch.manual_seed(0)
        return DomainInvariance(12, 2, DomainInvarianceSettings(layers=1, max_cells=40, initial_scale=scale))

    ct, mr = torch.randn(2, 1, 12, 4, 4, 4)
    module, usual = build(scale), build(1.0)
    torch.testing.assert_close(module(ct), ct + scale * (usual(ct) - ct))
    torch.testing.assert_close(module.forward_pair(ct, mr).mr, mr + scale * (usual.forward_pair(ct, mr).mr - mr))
    (module(ct) * torch.randn_like(ct)).sum().backward()
    assert module.proj.weight.grad.abs().max() > 0


def test_a_sample_does_not_depend_on_its_batch(module):
    ct, mr = torch.randn(2, 3, 12, 4, 5, 4)
    together = module.forward_pair(ct, mr)
    single = module.forward_pair(ct[1:2], mr[1:2])
    torch.testing.assert_close(together.ct[1:2], single.ct)
    torch.testing.assert_close(together.mr[1:2], single.mr)


def test_context_is_a_set_when_positions_are_left_out():
    layer = CoAttentionLayer(12, 3, 2.0).double()
    tokens, context = torch.randn(1, 5, 12).double(), torch.randn(1, 9, 12).double()
    order = torch.randperm(9)
    torch.testing.assert_close(layer(tokens, context, None)[0], layer(tokens, context[:, order], None)[0])
    with_positions = position_encoding((1, 3, 3), (1.0, 1.0, 1.0), 12).double()
    moved = layer(tokens[:, :1].expand(-1, 9, -1), context[:, order], with_positions)[0]
    assert not torch.allclose(moved, layer(tokens[:, :1].expand(-1, 9, -1), context, with_positions)[0])


def test_weights_are_probabilities_and_do_not_change_the_output(module):
    ct, mr = torch.randn(2, 2, 12, 3, 3, 3)
    with_weights = module.forward_pair(ct, mr, need_weights=True)
    assert len(with_weights.ct_weights) == len(with_weights.mr_weights) == 2
    for weights in with_weights.ct_weights + with_weights.mr_weights:
        assert weights.shape == (2, 2, 27, 27)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 27))
    silent = module.forward_pair(ct, mr)
    assert silent.ct_weights == []
    torch.testing.assert_close(with_weights.ct, silent.ct)


def test_different_sizes_are_refused(module):
    with pytest.raises(ValueError, match="same shape"):
        module.forward_pair(torch.zeros(1, 12, 2, 2, 2), torch.zeros(1, 12, 2, 2, 3))


@pytest.mark.slow
def test_gradients():
    torch.manual_seed(0)
    module = DomainInvariance(6, 2, DomainInvarianceSettings(layers=1, max_cells=4)).double()
    ct, mr = torch.randn(2, 1, 6, 2, 3, 2, dtype=torch.float64)
    run = lambda ct, mr: module.forward_pair(ct, mr)[:4]  # noqa: E731
    assert torch.autograd.gradcheck(run, (ct.requires_grad_(), mr.requires_grad_()))


class Identity(torch.nn.Module):
    """A block that leaves its tokens as they are."""

    def forward(self, tokens, context, positions, need_weights=False):
        return tokens, []


@pytest.mark.parametrize("shape", [(20, 28, 20), (32, 64, 56), (32, 32, 32), (64, 64, 64), (40, 160, 128)])
def test_the_update_lies_where_its_tokens_were(shape):
    module = DomainInvariance(6, 2, DomainInvarianceSettings(max_cells=300))
    module.ct_block = module.mr_block = Identity()
    module.norm = module.proj = torch.nn.Identity()
    module.grid = lambda shape: choose_grid(shape, (1.0, 1.0, 1.0), 300)
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in shape), indexing="ij")
    ramp = torch.stack([*axes, *axes])[None]
    displacement = (module(ramp) - 2 * ramp)[0, :3].abs()
    for axis, (size, cells) in enumerate(zip(shape, module.grid(shape), strict=True)):
        # Beyond the outermost cells there is nothing to interpolate to.
        margin = math.ceil(0.6 * size / cells)
        displacement = displacement.narrow(1 + axis, margin, size - 2 * margin)
    assert displacement.max() < 0.01


def smooth_noise(shape, seed):
    """White noise, blurred by three tokens: neighbouring tokens are alike, as those of an image are."""
    noise = torch.randn(1, 12, *(size + 6 for size in shape), generator=torch.Generator().manual_seed(seed))
    return F.normalize(F.avg_pool3d(F.avg_pool3d(noise, 3, 1), 5, 1), dim=1) * 12**0.5


def relative_change(module, one, other, common_one, common_other):
    """Norm of the difference of two maps' updates on common tokens, relative to the first's."""
    with torch.no_grad():
        update, changed = (module(x) - x for x in (one, other))
    update, changed = update[common_one], changed[common_other]
    return ((changed - update).norm() / update.norm()).item()


def test_the_update_changes_smoothly_with_the_size_and_the_place_of_a_patch():
    larger, moved = [], []
    crop = lambda start, size: (..., *[slice(start, start + size)] * 3)  # noqa: E731
    for seed in range(3):
        torch.manual_seed(seed)
        module = DomainInvariance(12, 2, DomainInvarianceSettings(layers=2, max_cells=216))
        x = smooth_noise((14, 14, 14), seed)
        one = x[crop(0, 12)]
        larger.append(relative_change(module, one, x[crop(0, 13)], crop(3, 6), crop(3, 6)))
        moved.append(relative_change(module, one, x[crop(1, 12)], crop(4, 6), crop(3, 6)))
    # Cells of whole tokens, 6 then 5 an axis, gave 0.43 to 0.47 for a map of 13 tokens.
    assert sum(larger) / 3 < 0.3
    assert sum(moved) / 3 < 0.3


def test_settings_from_older_or_newer_files_are_refused_by_name():
    assert DomainInvarianceSettings.from_dict({"layers": 2}) == DomainInvarianceSettings(layers=2)
    with pytest.raises(ValueError, match=r"max_tokens is of versions before 0\.2"):
        DomainInvarianceSettings.from_dict({"layers": 4, "max_tokens": 2048, "mlp_ratio": 2.0})
    with pytest.raises(ValueError, match=r"unknown fields \['gate'\]"):
        DomainInvarianceSettings.from_dict({"gate": True})


@pytest.mark.parametrize("scale", [-0.1, math.inf, math.nan])
def test_an_impossible_initial_scale_is_refused(scale):
    with pytest.raises(ValueError, match="initial_scale must be 0 or more"):
        DomainInvarianceSettings(initial_scale=scale)


def test_too_few_channels_are_refused():
    with pytest.raises(ValueError, match="6 channels or more"):
        DomainInvariance(4, 2, DomainInvarianceSettings())


def test_random_shifts_of_the_positions_are_of_training_alone():
    torch.manual_seed(0)
    module = DomainInvariance(12, 2, DomainInvarianceSettings())
    ct, mr = torch.randn(2, 3, 12, 6, 5, 4)
    module.eval()
    still, still_pair = module(ct), module.forward_pair(ct, mr)
    module.random_shift = True
    assert torch.equal(module(ct), still)
    module.train()
    moved = module(ct)
    # Each sample by another distance: equal images are told apart.
    repeated = module(ct[:1].expand(3, -1, -1, -1, -1))
    assert not torch.allclose(moved, still, atol=1e-4)
    assert not torch.allclose(repeated[0], repeated[1], atol=1e-4)
    pair = module.forward_pair(ct, mr)
    assert not torch.allclose(pair.ct, still_pair.ct, atol=1e-4)
    assert not torch.allclose(pair.mr, still_pair.mr, atol=1e-4)
    module.random_shift = False
    assert torch.equal(module(ct), still)
