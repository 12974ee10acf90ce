import torch

from nnunetv2_swinfuse.random_contrast import KNOTS, ContrastParameters, apply_contrast, draw_contrast


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
