import pytest
import torch

from pretraining.losses.inpainting import error_sums, loss_from_sums, visible_mean

SHAPE = (2, 1, 3, 4, 4)


def inpainting_loss(reconstruction, target, mask, visible_weight=1.0):
    return loss_from_sums(error_sums(reconstruction, target, mask), visible_weight)


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


def test_gradients():
    target, mask = torch.randn(SHAPE, dtype=torch.float64), torch.rand(SHAPE) < 0.5
    reconstruction = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: inpainting_loss(r, target, mask), (reconstruction,))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        inpainting_loss(torch.zeros(SHAPE), torch.zeros(SHAPE), torch.zeros(1, 1, 3, 4, 4))


def test_the_mean_of_a_crop_is_that_of_its_visible_voxels():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0, :, 1:], mask[1] = True, True
    voxels = torch.where(mask, torch.tensor(100.0), torch.tensor(3.0))
    # Of the second crop nothing is visible.
    assert visible_mean(voxels, mask).flatten().tolist() == [3.0, 0.0]
