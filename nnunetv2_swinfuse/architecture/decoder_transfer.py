"""Stem, skips and decoder of a network that was pretrained as a whole: what :mod:`transfer` asks for each tensor."""

from __future__ import annotations

from torch import Tensor

# dynamic-network-architectures counts a decoder's stages from the deepest; each has two modules.
COUNTED_FROM_THE_DEEPEST = ("decoder.stages.", "decoder.transpconvs.")
UPSAMPLING = "decoder.transpconvs."


def name_at_resolution(name: str, stages: int, network_stages: int) -> str | None:
    """The name that a tensor of the decoder has in a network of another depth, at the same resolution.

    Args:
        name: of a tensor of stem, skips or decoder.
        stages, network_stages: number of stages, full resolution included, of the pretrained and the other network.

    Returns:
        The name; None where the network has no stage at this resolution.
    """
    for prefix in COUNTED_FROM_THE_DEEPEST:
        if name.startswith(prefix):
            stage, rest = name.removeprefix(prefix).split(".", 1)
            shifted = int(stage) + network_stages - stages
            return f"{prefix}{shifted}.{rest}" if shifted >= 0 else None
    return name


def adapt_upsampling(weight: Tensor, stride: tuple[int, ...]) -> tuple[Tensor, str]:
    """Weights of a transposed convolution (inputs, features, kz, ky, kx) for another stride, which is its kernel.

    An axis that is no longer doubled gets the mean of both weights, one that is doubled now gets the same weight twice:
    the mean of the output along the axis stays what it was.
    """
    pretrained = tuple(weight.shape[2:])
    for axis, (old, new) in enumerate(zip(pretrained, stride, strict=True)):
        if new < old:
            weight = weight.mean(2 + axis, keepdim=True)
        elif new > old:
            weight = weight.repeat_interleave(new, 2 + axis)
    return weight, f"stride {pretrained} to {stride}" if pretrained != stride else ""
