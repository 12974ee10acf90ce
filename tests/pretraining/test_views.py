import pytest
import torch

from pretraining.views import (
    IntensityParameters,
    ViewParameters,
    ViewSettings,
    apply_view,
    change_intensity,
    draw_intensity,
    draw_view,
)

SHAPE = (8, 10, 10)


def generators(count, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + sample) for sample in range(count)]


def neutral(batch):
    return IntensityParameters(torch.zeros(batch), torch.ones(batch), torch.ones(batch))


def images(batch=3):
    return torch.randn(batch, 1, *SHAPE, generator=generators(1, 5)[0])


def test_drawing_depends_only_on_the_generator():
    settings = ViewSettings()
    first, repeated = (draw_view(SHAPE, settings, generators(3, 1)) for _ in range(2))
    assert torch.equal(first.mask, repeated.mask)
    assert torch.equal(first.turns, repeated.turns)
    assert not torch.equal(first.mask, draw_view(SHAPE, settings, generators(3, 2)).mask)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_wanted_share_is_cut_out_and_not_much_more(share):
    settings = ViewSettings(corrupted_share=share)
    masks = draw_view((32, 32, 32), settings, generators(16)).mask
    shares = masks.float().mean((1, 2, 3, 4))
    assert (shares >= share).all()
    assert (shares < share + 0.4**3).all()


def test_a_sample_does_not_depend_on_its_batch_mates():
    settings = ViewSettings(intensity_probability=0.5)
    whole, part = (draw_view(SHAPE, settings, generators(4)[start:]) for start in (0, 3))
    assert torch.equal(whole.mask[3], part.mask[0])
    assert whole.turns[3] == part.turns[0]
    whole, part = (draw_intensity(settings, generators(4)[start:]) for start in (0, 3))
    assert (whole.gamma[3], whole.contrast[3]) == (part.gamma[0], part.contrast[0])


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_cells_are_whole_and_their_share_is_exact(share):
    settings = ViewSettings(corrupted_share=share, masking="cells", cell=(4, 4, 4))
    parameters = draw_view((8, 16, 16), settings, generators(3))
    cells = parameters.mask[:, 0].unflatten(3, (4, 4)).unflatten(2, (4, 4)).unflatten(1, (2, 4)).float()
    means = cells.mean((2, 4, 6))
    assert ((means == 0) | (means == 1)).all()
    assert (means.sum((1, 2, 3)) == round(share * 32)).all()
    assert not torch.equal(parameters.mask[0], parameters.mask[1])
    batch = 3 + torch.randn(3, 1, 8, 16, 16)
    view = apply_view(batch, parameters, neutral(3), generators(3))
    assert (view.corrupted[view.mask] == 0).all()
    assert torch.equal(view.corrupted[~view.mask], view.target[~view.mask])


def test_cells_at_the_border_may_be_smaller():
    mask = draw_view(
        (6, 10, 10), ViewSettings(masking="cells", cell=(8, 8, 8), corrupted_share=0.5), generators(1)
    ).mask
    assert mask.shape == (1, 1, 6, 10, 10)
    assert mask[0, 0].any()


def test_turns_are_recoverable_and_all_occur():
    parameters = draw_view(SHAPE, ViewSettings(), generators(40))
    assert set(parameters.turns.tolist()) == {0, 1, 2, 3}
    batch = images(40)
    view = apply_view(batch, parameters, neutral(40), generators(40))
    for image, turned, turns in zip(batch, view.target, view.turns, strict=True):
        torch.testing.assert_close(torch.rot90(turned, -int(turns), (2, 3)), image)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_part_inside_the_volume_turns_with_the_crop(turns):
    padding = -7.0
    batch = torch.full((2, 1, *SHAPE), padding)
    batch[0, 0, 1:5, 2:10, 0:7] = torch.rand(4, 8, 7)
    batch[1] = torch.rand(1, *SHAPE)
    boxes = torch.tensor([[[1, 5], [2, 10], [0, 7]], [[0, 8], [0, 10], [0, 10]]])
    mask = torch.rand(2, 1, *SHAPE) < 0.5
    view = apply_view(
        batch, ViewParameters(torch.full((2,), turns), mask, None), neutral(2), generators(2), inside=boxes
    )
    assert torch.equal(view.inside, view.target != padding)
    assert torch.equal(view.hidden, mask | (view.target == padding))


def test_without_padding_all_voxels_are_inside_and_only_cut_outs_hidden():
    view = apply_view(images(), draw_view(SHAPE, ViewSettings(), generators(3)), neutral(3), generators(3))
    assert view.inside.all()
    assert torch.equal(view.hidden, view.mask)


def test_only_masked_voxels_are_corrupted():
    view = apply_view(images(), draw_view(SHAPE, ViewSettings(), generators(3)), neutral(3), generators(3))
    assert torch.equal(view.corrupted[~view.mask], view.target[~view.mask])
    assert (view.corrupted[view.mask] != view.target[view.mask]).float().mean() > 0.99


def test_swaps_come_from_the_other_crops_of_the_batch_and_noise_does_not():
    mask = torch.zeros(2, 1, *SHAPE, dtype=torch.bool)
    mask[:, :, :4] = True
    batch = images(2)
    swapped = apply_view(
        batch, ViewParameters(torch.zeros(2, dtype=torch.int64), mask, mask), neutral(2), generators(2)
    )
    assert torch.allclose(swapped.corrupted[0, :, :4], batch[1, :, :4], atol=1e-6)
    assert torch.allclose(swapped.corrupted[1, :, :4], batch[0, :, :4], atol=1e-6)
    single = apply_view(
        batch[:1], ViewParameters(torch.zeros(1, dtype=torch.int64), mask[:1], mask[:1]), neutral(1), generators(1)
    )
    assert not torch.isclose(single.corrupted[single.mask], single.target[single.mask]).all()


def test_noise_has_the_crops_own_mean_and_deviation():
    mask = torch.ones(1, 1, 32, 32, 32, dtype=torch.bool)
    batch = 5 + 0.1 * torch.randn(1, 1, 32, 32, 32)
    parameters = ViewParameters(torch.zeros(1, dtype=torch.int64), mask, torch.zeros_like(mask))
    noise = apply_view(batch, parameters, neutral(1), generators(1)).corrupted
    assert noise.mean().item() == pytest.approx(5, abs=0.01)
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)


def test_intensity_changes_keep_the_order_of_intensities():
    settings = ViewSettings(intensity_probability=1.0)
    batch = images()
    changed = change_intensity(batch, draw_intensity(settings, generators(3)))
    assert not torch.allclose(changed, batch, atol=1e-2)
    for before, after in zip(batch, changed, strict=True):
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= -1e-5).all()
    torch.testing.assert_close(change_intensity(batch, neutral(3)), batch, atol=1e-5, rtol=1e-5)


def test_flat_crops_stay_finite():
    settings = ViewSettings(intensity_probability=1.0)
    flat = torch.full((2, 1, *SHAPE), -1.3)
    view = apply_view(
        flat, draw_view(SHAPE, settings, generators(2)), draw_intensity(settings, generators(2)), generators(2)
    )
    assert torch.isfinite(view.corrupted).all()


def test_unequal_planes_cannot_be_turned():
    with pytest.raises(ValueError, match="y and x must be equal"):
        draw_view((8, 10, 12), ViewSettings(), generators(1))
    assert draw_view((8, 10, 12), ViewSettings(rotate=False), generators(1)).turns.item() == 0


@pytest.mark.parametrize(
    "changes",
    [{"corrupted_share": 1.2}, {"block_share": (0.5, 0.2)}, {"block_share": (0.5, 1.5)}, {"gamma": (0.0, 1.0)}],
)
def test_bad_settings_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        ViewSettings(**changes)
