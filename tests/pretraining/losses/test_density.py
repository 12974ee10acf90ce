import math

import pytest
import torch

from pretraining.losses.density import (
    density_matching,
    jensen_shannon_divergence,
    median_bandwidth,
    running_average,
)

CHANNELS = [4, 16, 48, 768]


def clouds(channels, shift, count=512, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, channels, generator=generator) for _ in range(2))
    return first, second + shift, generator


def divergence_share(channels, shift, seed=0):
    first, second, generator = clouds(channels, shift, seed=seed)
    return density_matching(first, second, generator=generator).divergence.item() / math.log(2)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_distributions_have_no_divergence(channels, seed):
    assert -1e-6 < divergence_share(channels, 0.0, seed) < 0.03


@pytest.mark.parametrize("channels", CHANNELS)
def test_divergence_grows_with_a_shift_up_to_ln_2(channels):
    shares = [divergence_share(channels, shift) for shift in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert shares == sorted(shares)
    assert shares[2] > 10 * shares[0]
    assert 0.6 < shares[-1] < 1.0 + 1e-6


def leave_one_out_divergence(first, second, bandwidth):
    """The definition, sample by sample."""

    def density(x, others):
        return sum(math.exp(-float((x - o).square().sum()) / (2 * bandwidth**2)) for o in others) / len(others)

    def entropy(own, other):
        share = own / (own + other)
        return -share * math.log(share) - (1 - share) * math.log(1 - share)

    means = []
    for own, other in ((first, second), (second, first)):
        rest = [torch.cat([own[:n], own[n + 1 :]]) for n in range(len(own))]
        entropies = [entropy(density(x, others), density(x, other)) for x, others in zip(own, rest, strict=True)]
        means.append(math.log(2) - sum(entropies) / len(own))
    return sum(means) / 2


def test_the_divergence_is_that_of_the_definition_without_ignored_samples():
    first, second, generator = clouds(3, 0.7, count=24)
    chosen = [torch.rand(24, generator=generator) < 0.6 for _ in range(2)]
    expected = leave_one_out_divergence(first[chosen[0]].double(), second[chosen[1]].double(), 0.8)
    measured = jensen_shannon_divergence(first, second, 0.8, *(mask.float() for mask in chosen))
    assert 0.02 < expected < 0.6
    assert measured.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [4, 48])
def test_minimising_brings_two_clouds_together(channels):
    first, second, generator = clouds(channels, 2.0, count=200)
    offset = torch.zeros(channels, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=0.05)
    bandwidth = None
    for _ in range(150):
        match = density_matching(first, second + offset, bandwidth=bandwidth, generator=generator)
        bandwidth = running_average(bandwidth, match.median_bandwidth)
        optimizer.zero_grad()
        match.loss.backward()
        optimizer.step()
    distance = (first.mean(0) - (second + offset).mean(0)).norm() / channels**0.5
    assert distance < 2.0 / 5


@pytest.mark.slow
@pytest.mark.parametrize("channels", [4, 16, 48])
@pytest.mark.parametrize("both", [True, False])
def test_tokens_that_move_one_by_one_meet(channels, both):
    first, second, generator = clouds(channels, 3.0, count=128)
    moving = [second.requires_grad_(), first.requires_grad_()][: 1 + both]
    optimizer = torch.optim.Adam(moving, lr=0.1)
    bandwidth, divergences = None, []
    for _ in range(250):
        match = density_matching(first, second, bandwidth=bandwidth, generator=generator)
        bandwidth = running_average(bandwidth, match.median_bandwidth)
        optimizer.zero_grad()
        match.loss.backward()
        optimizer.step()
        divergences.append(match.divergence.item())
    assert min(divergences) > -1e-6
    # If only one set moves, it also grows, because a common scale costs nothing; both together meet entirely.
    assert divergences[-1] < (0.01 if both else 0.25) * divergences[0]
    distance = (first.mean(0) - second.mean(0)) / torch.cat([first, second]).std(0)
    assert distance.norm() / channels**0.5 < (0.4 if both else 0.8)


@pytest.mark.parametrize("bandwidth", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("shift", [0.0, 1.0, 1e3])
def test_divergence_stays_between_0_and_ln_2(bandwidth, shift):
    first, second, _ = clouds(8, shift, count=60)
    for other in (second, first + 1e-3):
        assert -1e-6 < jensen_shannon_divergence(first, other, bandwidth).item() < math.log(2) + 1e-6


def test_registered_pairs_of_tokens_have_no_divergence():
    first, _, generator = clouds(16, 0.0)
    assert density_matching(first, first.clone(), generator=generator).divergence.item() < 0.01


def test_sets_have_no_order_and_may_differ_in_size():
    first, second, _ = clouds(4, 0.7, count=60)
    second = second[:40]
    whole = density_matching(first, second)
    shuffled = density_matching(first[torch.randperm(60)], second[torch.randperm(40)])
    torch.testing.assert_close(whole.divergence, shuffled.divergence)
    torch.testing.assert_close(whole.divergence, density_matching(second, first).divergence)


def test_scale_and_origin_of_the_features_do_not_matter():
    first, second, _ = clouds(6, 1.0, count=80)
    scale = torch.tensor([1e-2, 1.0, 1e3, 5.0, 0.3, 20.0])
    moved = density_matching(first * scale - 7, second * scale - 7)
    torch.testing.assert_close(moved.divergence, density_matching(first, second).divergence, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("loss", ["kde_jsd", "mmd", "coral", "sliced_wasserstein"])
def test_the_loss_cannot_be_lowered_by_shrinking_or_moving_all_tokens(loss):
    """Its derivative with respect to the logarithm of a common scale was 0.63 with detached statistics."""
    first, second, _ = clouds(12, 0.7, count=60)
    scale, offset = torch.zeros((), requires_grad=True), torch.zeros(12, requires_grad=True)
    match = density_matching(
        first * scale.exp() + offset,
        second * scale.exp() + offset,
        generator=torch.Generator().manual_seed(0),
        loss=loss,
    )
    gradients = torch.autograd.grad(match.loss, (scale, offset))
    for gradient in gradients:
        assert gradient.abs().max() < 1e-5
    assert match.loss > 1e-3


def test_gradients_pass_through_the_standardisation():
    first, second = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    width = torch.tensor(0.8, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: density_matching(a, b, bandwidth=width).loss, (first.requires_grad_(), second.requires_grad_())
    )


def test_the_floor_is_the_divergence_of_crops_of_one_modality():
    first, second, generator = clouds(8, 0.0, count=256)
    group = torch.arange(256) < 128
    alike = density_matching(first, second, ct_groups=group, mr_groups=group, generator=generator)
    assert alike.floor.item() < 0.03 * math.log(2)
    # Crops that differ by two deviations within CT: CT and MR cannot be expected to differ less.
    differing = density_matching(
        first + 2 * group[:, None], second, ct_groups=group, mr_groups=group, generator=generator
    )
    assert differing.floor.item() > 0.15 * math.log(2)
    one_crop = torch.ones(256, dtype=torch.bool)
    assert density_matching(first, second, ct_groups=one_crop, mr_groups=one_crop).floor.item() == 0


def test_below_the_floor_there_is_nothing_to_learn():
    first, second, _ = clouds(4, 0.5, count=100)
    second.requires_grad_()
    measured = density_matching(first, second).divergence
    above = density_matching(first, second, floor=measured / 2)
    assert above.loss.item() == pytest.approx(measured.item() / 2, rel=1e-4)
    below = density_matching(first, second, floor=2 * measured)
    below.loss.backward()
    assert below.loss.item() == 0
    assert second.grad.abs().max() == 0


def test_gradients():
    first, second = torch.randn(2, 6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: jensen_shannon_divergence(a, b, 0.8), (first.requires_grad_(), second.requires_grad_())
    )


def test_far_clouds_give_finite_gradients():
    first = torch.randn(20, 4).requires_grad_()
    match = density_matching(first, torch.randn(20, 4) + 1e4, bandwidth=torch.tensor(1e-3))
    match.loss.backward()
    assert torch.isfinite(first.grad).all()
    assert match.divergence.item() == pytest.approx(math.log(2), rel=1e-3)


def test_collapsed_tokens_are_finite_and_show_in_the_variance():
    tokens = torch.full((30, 8), 3.0).requires_grad_()
    match = density_matching(tokens, tokens.detach().clone())
    match.loss.backward()
    assert torch.isfinite(tokens.grad).all()
    assert match.feature_variance.item() == pytest.approx(0.0, abs=1e-6)


def test_bandwidth_follows_distances_and_is_floored_and_averaged():
    points = torch.randn(100, 4)
    torch.testing.assert_close(median_bandwidth(3 * points), 3 * median_bandwidth(points))
    assert median_bandwidth(torch.zeros(10, 4)) == pytest.approx(1e-2)
    # Two points at a distance of 5.
    assert median_bandwidth(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), share=0.2) == pytest.approx(1.0)
    assert running_average(None, torch.tensor(2.0)).item() == 2.0
    assert running_average(torch.tensor(1.0), torch.tensor(2.0)).item() == pytest.approx(1.1)


def test_autocast_does_not_lower_the_precision():
    first, second, _ = clouds(16, 0.5)
    plain = density_matching(first, second, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = density_matching(first, second, generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain.divergence, inside.divergence)


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        density_matching(torch.randn(1, 4), torch.randn(5, 4))


@pytest.mark.parametrize("loss", ["mmd", "coral", "sliced_wasserstein"])
def test_an_alternative_is_minimised_while_the_divergence_is_only_measured(loss):
    first, second, generator = clouds(16, 1.0, count=80)
    second = (2 * second).requires_grad_()
    match = density_matching(first, second, generator=generator, loss=loss)
    assert match.loss.item() > 0
    assert not match.divergence.requires_grad
    match.loss.backward()
    assert second.grad.abs().sum() > 0
    plain = density_matching(first, second.detach(), generator=torch.Generator().manual_seed(3))
    assert torch.equal(plain.loss, plain.divergence)
    assert match.floor is None


def test_an_unknown_loss_is_refused():
    first, second, _ = clouds(4, 0.0, count=10)
    with pytest.raises(ValueError, match="expected one of"):
        density_matching(first, second, loss="kl")


@pytest.mark.parametrize("loss", ["kde_jsd", "mmd", "coral", "sliced_wasserstein"])
def test_tokens_that_do_not_count_change_nothing(loss):
    first, second, _ = clouds(12, 1.0, count=90)
    counted = torch.rand(2, 90, generator=torch.Generator().manual_seed(5)) < 0.4
    expected = density_matching(
        first[counted[0]], second[counted[1]], generator=torch.Generator().manual_seed(1), loss=loss
    )
    first[~counted[0]] += 50
    second[~counted[1]] = -300
    first.requires_grad_()
    match = density_matching(
        first,
        second,
        ct_mask=counted[0],
        mr_mask=counted[1],
        generator=torch.Generator().manual_seed(1),
        loss=loss,
    )
    for name in ("loss", "divergence", "median_bandwidth", "feature_variance"):
        torch.testing.assert_close(getattr(match, name), getattr(expected, name), atol=1e-5, rtol=1e-4)
    match.loss.backward()
    assert first.grad[counted[0]].abs().sum() > 0
    assert first.grad[~counted[0]].abs().max() < 1e-6


def test_tokens_that_are_not_finite_give_a_loss_that_is_not_finite():
    """The training loop recognises it and says what to do; an error of the singular values would come before."""
    ct, mr = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0))
    ct[3, 1] = math.nan
    assert not density_matching(ct, mr).loss.isfinite()
    ct[3, 1] = math.inf
    assert not density_matching(ct, mr).loss.isfinite()
