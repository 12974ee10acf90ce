import pytest
import torch

from pretraining.losses.consistency import (
    adjusted_correlation,
    consistency,
    intraclass_correlation,
    place_moments,
    view_moments,
)


def test_turned_maps_of_one_image_agree():
    maps = torch.randn(4, 3, 2, 4, 4)
    turns = torch.tensor([0, 1, 2, 3])
    turned = torch.stack([torch.rot90(m, int(turn), dims=(2, 3)) for m, turn in zip(maps, turns, strict=True)])

    assert consistency(turned, maps, turns, torch.zeros(4, dtype=torch.int64)).abs().max() == 0
    # Both turned, by different numbers of quarters.
    other = torch.stack([torch.rot90(m, 3, dims=(2, 3)) for m in maps])
    assert consistency(turned, other, turns, torch.full((4,), 3)).abs().max() == 0


def test_without_undoing_the_turn_they_differ():
    maps = torch.randn(1, 3, 2, 4, 4)

    zero = torch.zeros(1, dtype=torch.int64)
    assert consistency(torch.rot90(maps, 1, dims=(3, 4)), maps, zero, zero).item() > 0.5


def test_a_shift_of_all_features_by_two_costs_four():
    maps = torch.randn(2, 3, 2, 2, 2)

    zero = torch.zeros(2, dtype=torch.int64)
    assert consistency(maps + 2, maps, zero, zero).tolist() == pytest.approx([4, 4], rel=1e-5)


def test_tokens_count_by_their_share_inside_the_volume():
    first, second = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 2, 4, 4)
    zero = torch.zeros(2, dtype=torch.int64)
    inside = torch.zeros(2, 1, 4, 8, 8, dtype=torch.bool)
    # Of the second crop nothing lies inside. Tokens have 2 x 2 x 2 voxels: one layer of them is whole, one half.
    inside[0, :, :3, :, 2:8] = True
    squares = (first - second).square()[0].mean(0)
    expected = (squares[0, :, 1:].sum() + 0.5 * squares[1, :, 1:].sum()) / (12 + 0.5 * 12)
    assert consistency(first, second, zero, zero, inside).tolist() == pytest.approx([expected.item(), 0], rel=1e-5)


def test_without_padding_the_value_is_exactly_the_mean():
    first, second = torch.randn(3, 3, 3, 4, 4), torch.randn(3, 3, 3, 4, 4)
    zero = torch.zeros(3, dtype=torch.int64)
    inside = torch.ones(3, 1, 12, 16, 16, dtype=torch.bool)
    found = consistency(first, second, zero, zero, inside)
    assert torch.equal(found, (first - second).square().mean((1, 2, 3, 4)))
    assert torch.equal(found, consistency(first, second, zero, zero))


def test_gradients():
    first, second = (torch.randn(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    turns, others = torch.tensor([1, 2]), torch.tensor([0, 3])

    assert torch.autograd.gradcheck(lambda a, b: consistency(a, b, turns, others), (first, second))


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="maps must be"):
        consistency(torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2), torch.zeros(1), torch.zeros(1))


ZERO = torch.zeros(8, dtype=torch.int64)


def icc(first, second, *more):
    return intraclass_correlation(view_moments(first, second, ZERO, ZERO, *more)).item()


def test_the_correlation_is_that_of_a_common_part_and_noise():
    """Views that share a part with the variance s and have noise with the variance n have an ICC of s / (s + n)."""
    torch.manual_seed(0)
    shared, noise, other = (torch.randn(8, 4, 8, 8, 8) for _ in range(3))
    for part in (0.0, 0.5, 0.9):
        first, second = (part**0.5 * shared + (1 - part) ** 0.5 * own for own in (noise, other))
        # 16384 values: four standard errors.
        assert icc(first, second) == pytest.approx(part, abs=0.03)
        # However small the difference is: shrunk towards a constant.
        assert icc(5 + 0.03 * first, 5 + 0.03 * second) == pytest.approx(part, abs=0.03)
    assert icc(shared, shared) == pytest.approx(1)
    assert icc(shared, -shared) == pytest.approx(-1, abs=0.01)
    # A mean over channels, whatever their scale: one of two agrees.
    scale = torch.tensor([100.0, 0.1, 100.0, 0.1]).reshape(1, 4, 1, 1, 1)
    for agrees in (scale > 1, scale < 1):
        assert icc(scale * shared, scale * torch.where(agrees, shared, noise)) == pytest.approx(0.5, abs=0.03)
    assert icc(torch.ones(8, 4, 2, 2, 2), torch.ones(8, 4, 2, 2, 2)) == 0


def test_gradients_of_the_correlation_do_not_shrink_the_features():
    torch.manual_seed(0)
    first, second = (torch.randn(8, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    turns = torch.arange(8) % 4
    inside = torch.rand(8, 1, 2, 4, 4) > 0.3

    def value(a, b):
        return intraclass_correlation(view_moments(a, b, turns, ZERO, inside))

    assert torch.autograd.gradcheck(value, (first, second))
    gradients = torch.autograd.grad(value(first, second), (first, second))
    # The change along the features themselves is that of a common factor: none but for the floor of the variance.
    along = sum((view * gradient).sum() for view, gradient in zip((first, second), gradients, strict=True))
    assert abs(along) < 1e-5 < gradients[0].abs().max()


@pytest.mark.parametrize("case", ["nothing inside", "little inside", "one token", "constant", "zero", "equal"])
def test_gradients_of_the_correlation_are_finite_where_little_is_compared(case):
    torch.manual_seed(0)
    first, second = (torch.randn(2, 3, 2, 2, 2) for _ in range(2))
    inside = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)
    if case in ("nothing inside", "little inside", "one token"):
        inside[:] = False
        inside[0, :, : 8 * (case == "one token"), :8, :8] = True
        inside[0, :, :1, :1, :1] = case != "nothing inside"
    elif case == "equal":
        second = first.clone()
    else:
        first, second = (torch.full_like(first, float(case == "constant")) for _ in range(2))
    first.requires_grad_(True)
    value = intraclass_correlation(view_moments(first, second, ZERO[:2], ZERO[:2], inside))
    expected = 1 if case == "equal" else 0
    assert value.item() == pytest.approx(expected, abs=1e-4)
    (gradient,) = torch.autograd.grad(value, first)
    assert gradient.isfinite().all()
    # A maximum, or nothing to change.
    assert gradient.abs().max() < 1e-2


def test_the_correlation_of_few_places_is_not_biased():
    """Of independent features at n places, the ratio of the mean difference to the mean variance is 1."""
    torch.manual_seed(0)
    for places in (2, 3, 8):
        first, second = torch.randn(2, 1, 200_000, 1, 1, places, dtype=torch.float64)
        moments = view_moments(first, second, ZERO[:1], ZERO[:1])
        _, difference, square, mean = (part.squeeze(0) for part in moments.split([1, 200_000, 200_000, 200_000], 1))
        variance = (square / places - (mean / places).square()).mean() * 2 * places / (2 * places - 1)
        assert (difference / places).mean().item() == pytest.approx(2 * variance.item(), rel=0.01)
        # The mean of the ratios itself is near 0 from a few places on.
        assert intraclass_correlation(moments).item() == pytest.approx(0, abs=0.2 if places < 8 else 0.02)


def test_turns_are_undone_and_padding_does_not_count():
    torch.manual_seed(0)
    maps = torch.randn(8, 3, 2, 4, 4)
    turns = torch.arange(8) % 4
    turned = torch.stack([torch.rot90(m, int(turn), dims=(2, 3)) for m, turn in zip(maps, turns, strict=True)])
    assert intraclass_correlation(view_moments(turned, maps, turns, ZERO)).item() == pytest.approx(1)
    inside = torch.ones(8, 1, 4, 8, 8, dtype=torch.bool)
    inside[:, :, 2:] = False
    # The last crop is all padding.
    inside[7] = False
    padded = maps.clone()
    padded[:, :, 1] = 100
    padded[7] = -100
    noise = torch.randn_like(maps)
    assert icc(padded, padded.roll(0), inside) == pytest.approx(1)
    expected = intraclass_correlation(view_moments(maps[:7, :, :1], noise[:7, :, :1], ZERO[:7], ZERO[:7])).item()
    noisy = torch.where(padded.abs() == 100, -padded, noise)
    assert icc(padded, noisy, inside) == pytest.approx(expected, abs=1e-5)


def adjusted(first, second, *more, chosen=None):
    zero = ZERO[: len(first)]
    weights = torch.ones(len(first), dtype=first.dtype) if chosen is None else torch.tensor(chosen, dtype=first.dtype)
    return adjusted_correlation(place_moments(first, second, zero, zero, *more), weights)


def test_the_adjusted_correlation_does_not_count_what_the_place_explains():
    torch.manual_seed(0)
    content, noise, other = (torch.randn(8, 4, 8, 8, 8) for _ in range(3))
    place = 3 * torch.randn(1, 4, 8, 8, 8)
    for part in (0.0, 0.5, 1.0):
        first, second = (place + part**0.5 * content + (1 - part) ** 0.5 * own for own in (noise, other))
        assert adjusted(first, second).item() == pytest.approx(part, abs=0.03)
        # The place is nine tenths of the variance or more.
        assert icc(first, second) > 0.88
    # Features of the place alone; and what any of them adds.
    assert adjusted(place.expand(8, -1, -1, -1, -1), place.expand(8, -1, -1, -1, -1)) == 0
    assert adjusted(first + 100, second + 100).item() == pytest.approx(1)
    assert adjusted(content, content + 1).item() < 0.8


def test_the_adjusted_correlation_is_that_of_all_pairs_of_crops_one_by_one():
    torch.manual_seed(0)
    first, second = (torch.randn(4, 3, 2, 2, 4, dtype=torch.float64) for _ in range(2))
    inside = torch.rand(4, 1, 2, 2, 4) > 0.3
    chosen = [1, 0, 1, 1]
    shares = inside.double()
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    across = sum((shares[i] * shares[j] * (first[i] - second[j]) ** 2).sum((1, 2, 3)) for i, j in pairs)
    across = across / sum((shares[i] * shares[j]).sum() for i, j in pairs)
    weights = shares * torch.tensor(chosen).reshape(4, 1, 1, 1, 1)
    same = (weights * (first - second) ** 2).sum((0, 2, 3, 4)) / weights.sum()
    found = adjusted(first, second, inside, chosen=chosen)
    assert found.item() == pytest.approx((1 - same / across).mean().item(), rel=1e-9)
    order = torch.tensor([2, 0, 3, 1])
    again = adjusted(first[order], second[order], inside[order], chosen=[chosen[i] for i in order])
    assert again.item() == pytest.approx(found.item(), rel=1e-9)


def test_gradients_of_the_adjusted_correlation():
    torch.manual_seed(0)
    first, second = (torch.randn(3, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    turns, weights = torch.tensor([0, 1, 3]), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    inside = torch.rand(3, 1, 2, 4, 4) > 0.3

    def value(a, b):
        return adjusted_correlation(place_moments(a, b, turns, ZERO[:3], inside), weights)

    assert torch.autograd.gradcheck(value, (first, second))
    # Without turns, a function of the place changes nothing.
    zero, place = ZERO[:3], torch.randn(1, 2, 1, 2, 2, dtype=torch.float64)
    plain, moved = (
        adjusted_correlation(place_moments(first + more, second + more, zero, zero), weights) for more in (0, place)
    )
    assert moved.item() == pytest.approx(plain.item(), rel=1e-9)


@pytest.mark.parametrize("case", ["one crop", "nothing inside", "no common place", "constant", "none chosen"])
def test_gradients_of_the_adjusted_correlation_are_finite_where_nothing_is_compared(case):
    torch.manual_seed(0)
    crops = 1 if case == "one crop" else 2
    first, second = (torch.randn(crops, 3, 1, 2, 2) for _ in range(2))
    inside = torch.ones(crops, 1, 1, 2, 2, dtype=torch.bool)
    if case == "nothing inside":
        inside[:] = False
    elif case == "no common place":
        inside[0, ..., 0] = inside[1, ..., 1] = False
    elif case == "constant":
        first, second = torch.ones_like(first), torch.ones_like(second)
    first.requires_grad_(True)
    value = adjusted(first, second, inside, chosen=[0.0, 0.0] if case == "none chosen" else None)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, first)
    assert gradient.abs().max() == 0
