import pytest
import torch

from pretraining.analysis.domain_gap import measure_gap, token_cka, token_icc

from . import synthetic_analysis as synthetic


def rotated(tokens, scale=2.0):
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(tokens.shape[2], tokens.shape[2], generator=generator)).Q
    return scale * tokens @ rotation


def test_equal_distributions_are_near_their_floor_and_at_chance():
    gap = measure_gap(synthetic.layer_tokens(0, 16), synthetic.layer_tokens(1, 16), True, 0)
    assert gap.divergence == pytest.approx(gap.floor, abs=0.02)
    assert gap.mmd < 0.02
    assert abs(gap.cka) < 0.1
    assert abs(gap.cka_crops) < 0.5
    assert gap.probe_accuracy < 0.75
    assert gap.rank > 0.9


def test_separated_distributions_are_told_apart():
    gap = measure_gap(synthetic.layer_tokens(0, 16), synthetic.layer_tokens(1, 16, shift=4.0), True, 0)
    # 0.79 for 512 tokens of 16 channels (docs/method.md).
    assert gap.divergence > 0.75
    assert gap.mmd > 0.3
    assert gap.floor < 0.05
    assert gap.probe_accuracy == 1


def test_domains_that_are_not_registered_may_have_other_numbers_of_crops():
    tokens = synthetic.layer_tokens(1, 16).tokens
    gap = measure_gap(synthetic.layer_tokens(0, 16), synthetic.layer_tokens(tokens=tokens[:5]), False, 0)
    assert gap.divergence == pytest.approx(gap.floor, abs=0.03)
    assert [gap.cka, gap.icc, gap.cka_other_patient, gap.cka_crops] == [None] * 4


def test_rotated_tokens_have_a_cka_of_one_and_those_of_another_patient_of_zero():
    first = synthetic.layer_tokens(0, 16)
    second = synthetic.layer_tokens(tokens=rotated(first.tokens))
    gap = measure_gap(first, second, True, 0)
    assert gap.cka == pytest.approx(1, abs=1e-5)
    assert gap.cka_crops == pytest.approx(1, abs=1e-5)
    assert abs(gap.cka_other_patient) < 0.1


def test_what_positions_give_is_seen_in_the_tokens_of_other_patients():
    positions = torch.randn(1, 32, 6, generator=torch.Generator().manual_seed(1)).expand(8, -1, -1)
    gap = measure_gap(
        synthetic.layer_tokens(tokens=positions), synthetic.layer_tokens(tokens=positions.clone()), True, 0
    )
    assert [gap.cka_other_patient, gap.icc_other_patient] == pytest.approx([1, 1], abs=1e-5)


def test_unregistered_crops_have_no_cka():
    gap = measure_gap(synthetic.layer_tokens(0), synthetic.layer_tokens(1), False, 0)
    assert gap.cka is gap.cka_other_patient is gap.icc is gap.icc_other_patient is gap.cka_crops is None


def test_cka_of_few_tokens_is_near_zero_also_with_many_channels():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(8, 2, dtype=torch.bool)
    values = [
        token_cka(torch.randn(8, 2, 200, generator=generator), torch.randn(8, 2, 200, generator=generator), mask, 0)
        for _ in range(50)
    ]
    assert abs(sum(values) / 50) < 0.03


def test_masked_tokens_do_not_count():
    first = synthetic.layer_tokens(0).tokens
    second = rotated(first)
    second[:, 16:] = 7.0
    mask = torch.zeros(first.shape[:2], dtype=torch.bool)
    mask[:, :16] = True
    assert token_cka(first, second, mask, 0) == pytest.approx(1, abs=1e-5)
    assert token_cka(first, second, torch.zeros_like(mask), 0) is None


@pytest.mark.parametrize(("share", "expected"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_icc_is_the_share_of_the_variance_that_places_have_in_common(share, expected, scale):
    """Tokens `sqrt(share) * place + sqrt(1 - share) * own`, all of variance 1, times a scale that changes nothing."""
    generator = torch.Generator().manual_seed(0)
    place, own, other = torch.randn(3, 8, 500, 4, generator=generator)
    first, second = (scale * (share**0.5 * place + (1 - share) ** 0.5 * noise) for noise in (own, other))
    assert token_icc(first, second, torch.ones(first.shape[:2], dtype=torch.bool)) == pytest.approx(expected, abs=0.03)


def test_the_gap_has_the_icc_of_the_same_patient_and_of_another():
    generator = torch.Generator().manual_seed(0)
    place, own, other = torch.randn(3, 8, 100, 4, generator=generator)
    first, second = (0.01 * 0.5**0.5 * (place + noise) for noise in (own, other))
    gap = measure_gap(synthetic.layer_tokens(tokens=first), synthetic.layer_tokens(tokens=second), True, 0)
    assert gap.icc == pytest.approx(0.5, abs=0.06)
    assert gap.icc_other_patient == pytest.approx(0, abs=0.06)
    assert gap.deviation == pytest.approx(0.01, rel=0.06)


def test_icc_unlike_cka_sees_a_rotation_between_the_domains():
    first = synthetic.layer_tokens(0, 16).tokens
    assert token_icc(first, rotated(first, 1.0), torch.ones(first.shape[:2], dtype=torch.bool)) < 0.5
    assert token_icc(first, first, torch.zeros(first.shape[:2], dtype=torch.bool)) is None
