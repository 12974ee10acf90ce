"""A residual encoder's tensors for other kernels and strides: what :mod:`transfer` asks for each of them."""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.architecture.tensor_names import stage_of
from nnunetv2_swinfuse.architecture.topology import Triple

# The convolution of each stage that carries out the stage's stride.
STRIDED = ".blocks.0.conv1.conv.weight"


def name_in_network(name: str, known: Collection[str]) -> str:
    """The name of a tensor in the network: a shortcut's projection follows pooling only in stages with a stride."""
    if name not in known:
        for old, new in ((".skip.1.", ".skip.0."), (".skip.0.", ".skip.1.")):
            if old in name and name.replace(old, new) in known:
                return name.replace(old, new)
    return name


def adapt_kernel(weight: Tensor, kernel: tuple[int, ...]) -> tuple[Tensor, str]:
    """Convolution weights (features, channels, kz, ky, kx) for another kernel; also describes what was done.

    A kernel that becomes 1 wide along an axis is summed along it: maps that are constant along the axis keep the
    pretrained response. One that becomes wider keeps its weights in its centre: every map keeps the response.
    """
    pretrained = tuple(weight.shape[2:])
    if kernel == pretrained:
        return weight, ""
    for axis, (old, new) in enumerate(zip(pretrained, kernel, strict=True)):
        if new == 1 < old:
            weight = weight.sum(2 + axis, keepdim=True)
        elif new > old and (new - old) % 2 == 0:
            margin = [0] * 6
            margin[2 * (2 - axis) : 2 * (2 - axis) + 2] = [(new - old) // 2] * 2
            weight = F.pad(weight, margin)
    return weight, f"kernel {pretrained} to {kernel}"


def stride_change(name: str, source: tuple[Triple, ...], target: tuple[Triple, ...]) -> str:
    """Says of a convolution that its stage has another stride now, its weights being used as they are; else nothing.

    Args:
        name: name of the tensor.
        source, target: strides of the encoder's stages, pretrained and in the network.
    """
    stage = stage_of(name)
    if stage is None or not name.endswith(STRIDED) or source[stage] == target[stage]:
        return ""
    return f"stride {source[stage]} to {target[stage]}, weights as they are"
