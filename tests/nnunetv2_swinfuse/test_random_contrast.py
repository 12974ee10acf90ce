import pytest
import torch
import torch.nn.functional as F

from nnunetv2_swinfuse.random_contrast import (
    KNOTS,
    ContrastParameters,
    apply_contrast,
    background_intensity,
    draw_contrast,
)


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + index) for index in range(count)]


def curve_only(knots):
    """Parameters of a pure intensity curve."""
    drawn = draw_contrast(generators(1))
    return drawn._replace(knots=knots[None], share=torch.zeros(1), field=torch.zeros_like(drawn.field))


def test_a_falling_curve_inverts_the_image():
    image = torch.randn(1, 1, 6, 6, 6)
    rendered = apply_contrast(image, curve_only(torch.linspace(1, 0, KNOTS)))
    torch.testing.assert_close(rendered, 2 * image.mean() - image, atol=1e-4, rtol=1e-4)


def test_a_rising_straight_curve_changes_nothing():
    image = torch.randn(1, 1, 6, 6, 6)
    torch.testing.assert_close(
        apply_contrast(image, curve_only(torch.linspace(0, 1, KNOTS))), image, atol=1e-4, rtol=1e-4
    )


def test_a_tent_maps_both_ends_to_the_same_intensity():
    image = torch.linspace(-3, 3, 216).reshape(1, 1, 6, 6, 6)
    knots = torch.tensor([0.0, 0.4, 0.8, 0.8, 0.4, 0.0])
    rendered = apply_contrast(image, curve_only(knots)).flatten()
    torch.testing.assert_close(rendered, rendered.flip(0), atol=1e-4, rtol=1e-4)


def test_mean_and_deviation_stay_and_contrasts_differ():
    image = torch.randn(3, 1, 8, 8, 8) * 2 + 5
    rendered = apply_contrast(image, draw_contrast(generators(3)))
    torch.testing.assert_close(rendered.mean((1, 2, 3, 4)), image.mean((1, 2, 3, 4)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(rendered.std((1, 2, 3, 4)), image.std((1, 2, 3, 4)), atol=1e-3, rtol=1e-3)
    others = apply_contrast(image, draw_contrast(generators(3, seed=50)))
    assert (rendered - others).abs().amax((1, 2, 3, 4)).min() > 0.5


def test_air_stays_flat_so_that_it_does_not_show_where_the_crop_lies():
    image = torch.full((4, 1, 12, 12, 12), -1.0)
    image[..., 5:] = torch.randn(4, 1, 12, 12, 7).abs()
    rendered = apply_contrast(image, draw_contrast(generators(4)))
    # Two voxels from the body, the two convolutions of three voxels see only air.
    air = rendered[..., :3].flatten(1)
    assert (air - air[:, :1]).abs().max() < 1e-4


def body_in(background, tissue):
    """Crops of 16 voxels along each axis, tissue in the last ten along x."""
    image = background.clone()
    image[..., 6:] = tissue[..., 6:]
    return image


BACKGROUNDS = {
    # MR that was normalised in its mask: zeros, which are no minimum.
    "zeros": torch.zeros(4, 1, 16, 16, 16),
    # The same after resampling with splines.
    "nearly zeros": 1e-5 * torch.randn(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)),
    # CT whose air was clipped, or a crop that is rendered again after a contrast that turned it bright.
    "lowest": torch.full((4, 1, 16, 16, 16), -5.0),
    "highest": torch.full((4, 1, 16, 16, 16), 5.0),
}


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_the_background_stays_flat_at_any_intensity(name):
    background = BACKGROUNDS[name]
    image = body_in(background, torch.randn(background.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(background_intensity(image), background[:, :, :1, :1, :1], atol=1e-4)
    rendered = apply_contrast(image, draw_contrast(generators(4)))
    # Two voxels from the body, the two convolutions of three voxels see only background.
    outside = rendered[..., :4].flatten(1)
    assert (outside.std(1) / rendered.flatten(1).std(1)).max() < 1e-3


def test_noise_in_the_air_has_no_gradient():
    """MR that was not normalised in a mask: no two voxels of its air are equal, and the air is at its minimum."""
    generator = torch.Generator().manual_seed(0)
    air = -1 + 0.03 * torch.randn(4, 1, 16, 16, 16, generator=generator).abs()
    image = body_in(air, torch.randn(air.shape, generator=generator).abs())
    assert torch.equal(background_intensity(image), image.amin((1, 2, 3, 4), keepdim=True))
    rendered = apply_contrast(image, draw_contrast(generators(4)))
    means = F.avg_pool3d(rendered[..., :4], 4)
    assert (means.flatten(1).std(1) / rendered.flatten(1).std(1)).max() < 0.05


def test_a_few_equal_voxels_are_no_background():
    image = torch.randn(1, 1, 16, 16, 16)
    image[..., 4:7, 4:7, 4:7] = 0.5
    assert background_intensity(image).item() == image.min()


def test_anatomy_stays_in_place():
    """A blob that moves, moves alike in every contrast: the rendering is local."""
    image = torch.zeros(1, 1, 12, 12, 12)
    image[..., 6, 6, 6] = 1.0
    parameters = draw_contrast(generators(1))
    change = apply_contrast(image, parameters._replace(field=torch.zeros_like(parameters.field)))
    background = change[..., 0, 0, 0]
    assert (change[..., :4, :, :] - background).abs().max() < 1e-5
    assert (change[..., 6, 6, 6] - background).abs() > 0.1


def test_a_sample_does_not_depend_on_its_batch():
    image = torch.randn(3, 1, 6, 6, 6)
    together = apply_contrast(image, draw_contrast(generators(3)))
    single = apply_contrast(image[1:2], ContrastParameters(*(p[1:2] for p in draw_contrast(generators(3)))))
    torch.testing.assert_close(together[1:2], single)
