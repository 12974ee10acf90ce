import math

import pytest
import torch

from pretraining.losses.contrastive import contrastive_loss, cross_modal_loss


def test_equals_nt_xent_written_out():
    first, second = torch.randn(2, 3, 5, dtype=torch.float64)
    vectors = torch.cat([first, second])
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    expected = 0.0
    for i in range(6):
        others = [math.exp(float(vectors[i] @ vectors[k]) / 0.5) for k in range(6) if k != i]
        expected -= math.log(math.exp(float(vectors[i] @ vectors[(i + 3) % 6]) / 0.5) / sum(others)) / 6
    assert contrastive_loss(first, second, 0.5).item() == pytest.approx(expected)


def test_symmetric_in_views_samples_and_scale():
    first, second = torch.randn(2, 4, 8)
    loss = contrastive_loss(first, second)
    order = torch.randperm(4)
    torch.testing.assert_close(loss, contrastive_loss(second, first))
    torch.testing.assert_close(loss, contrastive_loss(first[order], second[order]))
    torch.testing.assert_close(loss, contrastive_loss(3 * first, 3 * second))


def test_what_all_vectors_have_in_common_hides_nothing():
    first, second = torch.randn(2, 4, 8, dtype=torch.float64)
    common = 1e3 * torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(contrastive_loss(first, second), contrastive_loss(first + common, second + common))


def test_agreeing_views_cost_less_than_mixed_ones():
    vectors = torch.eye(4)
    assert contrastive_loss(vectors, vectors) < contrastive_loss(vectors, vectors.roll(1, 0))


def test_a_single_sample_has_no_negatives():
    assert contrastive_loss(torch.randn(1, 3), torch.randn(1, 3)).item() == pytest.approx(0.0)


def test_gradients():
    first, second = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(contrastive_loss, (first.requires_grad_(), second.requires_grad_()))


def test_precision_does_not_follow_autocast():
    first, second = torch.randn(2, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(first, second), contrastive_loss(first, second).float())
        assert contrastive_loss(first.bfloat16(), second.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3, 4, 1), (3, 4, 1))])
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        contrastive_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_cross_modal_loss_is_that_of_the_registered_pairs():
    torch.manual_seed(0)
    ct, mr = torch.randn(2, 4, 5, dtype=torch.float64)
    registered = torch.tensor([True, False, True, True])
    expected = contrastive_loss(ct[registered], mr[registered])
    assert cross_modal_loss(ct, mr, registered).item() == pytest.approx(expected.item())
    # Crops that are not registered are ignored, and a single pair has no negatives.
    changed = ct.clone()
    changed[1] = 9.0
    assert torch.equal(cross_modal_loss(ct, mr, registered), cross_modal_loss(changed, mr, registered))
    assert cross_modal_loss(ct, mr, torch.tensor([True, False, False, False])) is None
