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


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def neutral(batch):
    return IntensityParameters(torch.zeros(batch), torch.ones(batch), torch.ones(batch))


def images(batch=3):
    return torch.randn(batch, 1, *SHAPE, generator=generator(5))


def test_drawing_depends_on_the_generator_alone():
    settings = ViewSettings()
    first, again = (draw_view(3, SHAPE, settings, generator(1)) for _ in range(2))
    assert torch.equal(first.mask, again.mask)
    assert torch.equal(first.turns, again.turns)
    assert not torch.equal(first.mask, draw_view(3, SHAPE, settings, generator(2)).mask)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_wanted_share_is_cut_out_and_not_much_more(share):
    settings = ViewSettings(corrupted_share=share)
    masks = draw_view(16, (32, 32, 32), settings, generator()).mask
    shares = masks.float().mean((1, 2, 3, 4))
    assert (shares >= share).all()
    assert (shares < share + 0.4**3).all()


def test_turns_are_recoverable_and_all_occur():
    parameters = draw_view(40, SHAPE, ViewSettings(), generator())
    assert set(parameters.turns.tolist()) == {0, 1, 2, 3}
    batch = images(40)
    view = apply_view(batch, parameters, neutral(40), generator())
    for image, turned, turns in zip(batch, view.target, view.turns, strict=True):
        torch.testing.assert_close(torch.rot90(turned, -int(turns), (2, 3)), image)


def test_only_masked_voxels_are_corrupted():
    view = apply_view(images(), draw_view(3, SHAPE, ViewSettings(), generator()), neutral(3), generator())
    assert torch.equal(view.corrupted[~view.mask], view.target[~view.mask])
    assert (view.corrupted[view.mask] != view.target[view.mask]).float().mean() > 0.99


def test_swaps_come_from_the_other_crops_of_the_batch_and_noise_does_not():
    mask = torch.zeros(2, 1, *SHAPE, dtype=torch.bool)
    mask[:, :, :4] = True
    batch = images(2)
    swapped = apply_view(batch, ViewParameters(torch.zeros(2, dtype=torch.int64), mask, mask), neutral(2), generator())
    assert torch.allclose(swapped.corrupted[0, :, :4], batch[1, :, :4], atol=1e-6)
    assert torch.allclose(swapped.corrupted[1, :, :4], batch[0, :, :4], atol=1e-6)
    alone = apply_view(
        batch[:1], ViewParameters(torch.zeros(1, dtype=torch.int64), mask[:1], mask[:1]), neutral(1), generator()
    )
    assert not torch.isclose(alone.corrupted[alone.mask], alone.target[alone.mask]).all()


def test_noise_has_the_crops_own_mean_and_deviation():
    mask = torch.ones(1, 1, 32, 32, 32, dtype=torch.bool)
    batch = 5 + 0.1 * torch.randn(1, 1, 32, 32, 32)
    parameters = ViewParameters(torch.zeros(1, dtype=torch.int64), mask, torch.zeros_like(mask))
    noise = apply_view(batch, parameters, neutral(1), generator()).corrupted
    assert noise.mean().item() == pytest.approx(5, abs=0.01)
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)


def test_intensity_changes_keep_the_order_of_intensities():
    settings = ViewSettings(intensity_probability=1.0)
    batch = images()
    changed = change_intensity(batch, draw_intensity(3, settings, generator()))
    assert not torch.allclose(changed, batch, atol=1e-2)
    for before, after in zip(batch, changed, strict=True):
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= -1e-5).all()
    torch.testing.assert_close(change_intensity(batch, neutral(3)), batch, atol=1e-5, rtol=1e-5)


def test_flat_crops_stay_finite():
    settings = ViewSettings(intensity_probability=1.0)
    flat = torch.full((2, 1, *SHAPE), -1.3)
    view = apply_view(
        flat, draw_view(2, SHAPE, settings, generator()), draw_intensity(2, settings, generator()), generator()
    )
    assert torch.isfinite(view.corrupted).all()


def test_unequal_planes_cannot_be_turned():
    with pytest.raises(ValueError, match="y and x must be equal"):
        draw_view(1, (8, 10, 12), ViewSettings(), generator())
    assert draw_view(1, (8, 10, 12), ViewSettings(rotate=False), generator()).turns.item() == 0


@pytest.mark.parametrize(
    "changes",
    [{"corrupted_share": 1.2}, {"block_share": (0.5, 0.2)}, {"block_share": (0.5, 1.5)}, {"gamma": (0.0, 1.0)}],
)
def test_bad_settings_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        ViewSettings(**changes)
