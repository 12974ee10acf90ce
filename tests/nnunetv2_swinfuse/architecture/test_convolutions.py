import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunetv2_swinfuse.architecture.convolutions import SkipPyramid, convolutions, residual_blocks


def test_a_block_is_convolution_instance_norm_and_leaky_relu():
    block = convolutions(1, 2, 3, (3, 3, 3), (1, 2, 2))
    weights = {name.split(".")[-2]: parameter for name, parameter in block.named_parameters() if parameter.ndim > 1}
    (bias,) = (p for name, p in block.named_parameters() if name.endswith("conv.bias"))
    image = torch.randn(2, 2, 4, 6, 6)
    convolved = F.conv3d(image, weights["conv"], bias, stride=(1, 2, 2), padding=1)
    expected = F.leaky_relu(F.instance_norm(convolved, eps=1e-5), 0.01)
    torch.testing.assert_close(block(image), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", [convolutions, residual_blocks])
def test_only_the_first_of_several_blocks_has_the_stride(blocks):
    module = blocks(3, 2, 4, (1, 3, 3), (1, 2, 2))
    assert module(torch.randn(1, 2, 4, 8, 8)).shape == (1, 4, 4, 4, 4)


def test_stochastic_depth_is_in_every_residual_block():
    blocks = residual_blocks(2, 4, 4, (3, 3, 3), (1, 1, 1), drop_path=0.4)
    rates = [module.drop_prob for module in blocks.modules() if type(module).__name__ == "DropPath"]
    assert rates == [0.4, 0.4]


def test_convolutions_of_a_pyramid_end_with_the_channels_of_the_stage():
    pyramid = SkipPyramid([8, 16], [(1, 1, 1), (2, 2, 2)], [(1, 3, 3), (3, 3, 3)])
    kernels = [m.kernel_size for m in pyramid.convolutions(2, 4, 0).modules() if isinstance(m, nn.Conv3d)]
    assert kernels == [(1, 3, 3)] * 2
    assert pyramid.convolutions(1, 8, 1, (2, 2, 2))(torch.randn(1, 8, 4, 4, 4)).shape == (1, 16, 2, 2, 2)
