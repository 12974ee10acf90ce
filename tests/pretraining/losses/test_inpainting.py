import pytest
import torch

from pretraining.losses.inpainting import error_sums, loss_from_sums, visible_mean

SHAPE = (2, 1, 3, 4, 4)


def inpainting_loss(reconstruction, target, mask, visible_weight=1.0, inside=None):
    return loss_from_sums(error_sums(reconstruction, target, mask, inside), visible_weight)


def test_masked_and_visible_errors_are_averaged_apart():
    target = torch.zeros(SHAPE)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, :, 0] = True
    reconstruction = torch.where(mask, torch.tensor(2.0), torch.tensor(5.0))
    assert inpainting_loss(reconstruction, target, mask, visible_weight=0.1).item() == pytest.approx(2.0 + 0.5)


def test_visible_voxels_do_not_count_without_weight():
    target, mask = torch.randn(SHAPE), torch.rand(SHAPE) < 0.5
    reconstruction = torch.randn(SHAPE)
    changed = torch.where(mask, reconstruction, torch.randn(SHAPE))
    assert inpainting_loss(reconstruction, target, mask, 0.0) == inpainting_loss(changed, target, mask, 0.0)


@pytest.mark.parametrize("value", [True, False])
def test_masks_of_everything_and_of_nothing(value):
    loss = inpainting_loss(torch.ones(SHAPE), torch.zeros(SHAPE), torch.full(SHAPE, value), 0.1)
    assert loss.item() == pytest.approx(1.0 if value else 0.1)


def test_a_padded_crop_has_the_loss_of_its_part_inside_the_volume():
    box = (slice(None), slice(None), slice(1, 3), slice(None), slice(0, 3))
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[box] = True
    target, reconstruction, mask = torch.randn(SHAPE), torch.randn(SHAPE, requires_grad=True), torch.rand(SHAPE) < 0.5
    loss = inpainting_loss(reconstruction, target, mask, 0.3, inside)
    expected = inpainting_loss(reconstruction[box], target[box], mask[box], 0.3)
    torch.testing.assert_close(loss, expected)
    changed = torch.where(inside, reconstruction, torch.randn(SHAPE))
    assert inpainting_loss(changed, target, mask, 0.3, inside) == loss
    (gradient,) = torch.autograd.grad(loss, reconstruction)
    assert torch.equal(gradient != 0, inside)


def test_a_crop_without_padding_has_exactly_the_loss_of_all_voxels():
    target, reconstruction, mask = torch.randn(SHAPE), torch.randn(SHAPE), torch.rand(SHAPE) < 0.5
    everywhere = torch.ones(SHAPE, dtype=torch.bool)
    assert torch.equal(error_sums(reconstruction, target, mask, everywhere), error_sums(reconstruction, target, mask))
    error = (reconstruction - target).abs()
    cut_out, visible = mask.float(), 1 - mask.float()
    by_hand = torch.stack([(error * cut_out).sum(), cut_out.sum(), (error * visible).sum(), visible.sum()])
    assert torch.equal(error_sums(reconstruction, target, mask, everywhere), by_hand)


def test_gradients():
    target, mask = torch.randn(SHAPE, dtype=torch.float64), torch.rand(SHAPE) < 0.5
    reconstruction = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: inpainting_loss(r, target, mask), (reconstruction,))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        inpainting_loss(torch.zeros(SHAPE), torch.zeros(SHAPE), torch.zeros(1, 1, 3, 4, 4))
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    with pytest.raises(ValueError, match="one shape"):
        inpainting_loss(torch.zeros(SHAPE), torch.zeros(SHAPE), mask, inside=mask[:1])


def test_the_mean_of_a_crop_is_that_of_its_visible_voxels():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0, :, 1:], mask[1] = True, True
    voxels = torch.where(mask, torch.tensor(100.0), torch.tensor(3.0))
    # Of the second crop nothing is visible.
    assert visible_mean(voxels, mask).flatten().tolist() == [3.0, 0.0]
