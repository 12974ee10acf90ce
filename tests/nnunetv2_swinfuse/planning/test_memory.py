from dataclasses import astuple

import pytest

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from nnunetv2_swinfuse.planning.measured_memory import meta_step_memory
from nnunetv2_swinfuse.planning.memory import (
    BYTES_PER_ELEMENT,
    bias_gradient_memory,
    estimate_step_memory,
    step_sizes,
)

pytestmark = pytest.mark.slow

CUBIC = [[1, 1, 1], *[[2, 2, 2]] * 4]
ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
SMALL = EncoderSettings(feature_size=24, depths=(2, 2), num_heads=(3, 6))
LARGE_WINDOWS = EncoderSettings(feature_size=24, depths=(2, 2), num_heads=(3, 6), window_size=14)


def architecture(strides, settings=SMALL):
    return plans_architecture(strides, settings, drop_path_rate=0.1)["arch_kwargs"]


@pytest.mark.parametrize(
    ("strides", "settings", "patch", "batch", "channels", "classes"),
    [
        (CUBIC, EncoderSettings(), (64, 64, 64), 2, 1, 3),
        (CUBIC, LARGE_WINDOWS, (64, 64, 64), 2, 1, 3),
        (CUBIC, EncoderSettings(), (128, 128, 128), 2, 1, 3),
        (CUBIC, SMALL, (64, 96, 64), 4, 4, 3),
        (CUBIC, SMALL, (128, 112, 160), 2, 1, 20),
        (ANISOTROPIC, SMALL, (20, 320, 256), 2, 1, 3),
        (CUBIC, LARGE_WINDOWS, (96, 128, 96), 3, 1, 3),
    ],
)
def test_the_estimate_tracks_the_measured_memory(strides, settings, patch, batch, channels, classes):
    arguments = architecture(strides, settings), patch, batch, channels, classes
    assert estimate_step_memory(*arguments) == pytest.approx(meta_step_memory(*arguments), rel=0.15)


def test_the_gradient_of_the_position_bias_is_counted():
    # 7 x 7 x 7 windows of 343 tokens, 3 heads; rows padded to 352 entries of 2 bytes.
    first, second = (
        bias_gradient_memory(architecture(CUBIC, EncoderSettings()), (96, 96, 96), batch, 1, 3) for batch in (1, 2)
    )
    stem = BYTES_PER_ELEMENT.convolutions * SwinFUSEUNet(
        1, 3, True, **architecture(CUBIC, EncoderSettings())
    ).stem.compute_conv_feature_map_size((96, 96, 96))
    assert second - first == pytest.approx(343 * 3 * 343 * 352 * 2 + stem)
    # With windows of 14 it is the peak, and the activations without it less than half of what is measured.
    arguments = architecture(CUBIC, LARGE_WINDOWS), (96, 96, 96), 2, 1, 3
    measured = meta_step_memory(*arguments)
    assert bias_gradient_memory(*arguments) == pytest.approx(measured, rel=0.1)
    weighted = zip(astuple(step_sizes(*arguments)), astuple(BYTES_PER_ELEMENT), strict=True)
    assert sum(size * weight for size, weight in weighted) < 0.6 * measured


def test_sizes_grow_with_the_batch_and_parameters_do_not():
    one, two = (step_sizes(architecture(CUBIC), (32, 32, 32), batch, 1, 3) for batch in (1, 2))
    assert one.parameters == two.parameters
    assert (two.convolutions, two.attention, two.logits) == (2 * one.convolutions, 2 * one.attention, 2 * one.logits)


def test_an_impossible_patch_names_its_axis():
    with pytest.raises(ValueError, match=r"axis x has 33 voxels.*use a multiple of 16"):
        step_sizes(architecture(CUBIC), (32, 32, 33), 2, 1, 3)
