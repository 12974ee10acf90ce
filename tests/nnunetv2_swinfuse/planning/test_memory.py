import pytest

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.planning.measured_memory import meta_step_memory
from nnunetv2_swinfuse.planning.memory import estimate_step_memory, step_sizes

CUBIC = [[1, 1, 1], *[[2, 2, 2]] * 4]
ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
SMALL = EncoderSettings(feature_size=24, depths=(2, 2), num_heads=(3, 6))


def architecture(strides, settings=SMALL):
    return plans_architecture(strides, settings, drop_path_rate=0.1)["arch_kwargs"]


@pytest.mark.parametrize(
    ("strides", "settings", "patch", "batch", "channels", "classes"),
    [
        (CUBIC, EncoderSettings(), (64, 64, 64), 2, 1, 3),
        (CUBIC, EncoderSettings(), (128, 128, 128), 2, 1, 3),
        (CUBIC, SMALL, (64, 96, 64), 4, 4, 3),
        (CUBIC, SMALL, (128, 112, 160), 2, 1, 20),
        (ANISOTROPIC, SMALL, (20, 320, 256), 2, 1, 3),
    ],
)
def test_the_estimate_tracks_the_measured_memory(strides, settings, patch, batch, channels, classes):
    arguments = architecture(strides, settings), patch, batch, channels, classes
    assert estimate_step_memory(*arguments) == pytest.approx(meta_step_memory(*arguments), rel=0.15)


def test_sizes_grow_with_the_batch_and_parameters_do_not():
    one, two = (step_sizes(architecture(CUBIC), (32, 32, 32), batch, 1, 3) for batch in (1, 2))
    assert one.parameters == two.parameters
    assert (two.convolutions, two.attention, two.logits) == (2 * one.convolutions, 2 * one.attention, 2 * one.logits)


def test_an_impossible_patch_names_its_axis():
    with pytest.raises(ValueError, match=r"axis x has 33 voxels.*use a multiple of 16"):
        step_sizes(architecture(CUBIC), (32, 32, 33), 2, 1, 3)
