"""Floating point operations of the encoders' parts in the forward pass of one image, as closed formulas.

A multiplication with its addition counts as two. Norms, activations and the padding of windows are left out, so that
the counts change smoothly with the size of the map and never exceed what is executed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunetv2_swinfuse.architecture.topology import Triple


def swin_operations(
    shape: Triple,
    strides: Sequence[Triple],
    feature_size: int,
    depths: Sequence[int],
    window_size: int,
    mlp_ratio: float,
) -> float:
    """Swin stages on an embedding.

    Args:
        shape: size of the embedding in tokens (z, y, x).
        strides: stride of each stage's merging (z, y, x).
        feature_size: channels of the embedding, doubled by every merging.
        depths: blocks of each stage, at least as many as strides.
        window_size: window in tokens along each axis.
        mlp_ratio: hidden channels of the feed-forward networks, relative to their input's.
    """
    size = [float(tokens) for tokens in shape]
    total = 0.0
    for stage, stride in enumerate(strides):
        channels = feature_size << stage
        tokens = math.prod(size)
        window = math.prod([min(window_size, extent) for extent in size])
        projections = (4 + 2 * mlp_ratio) * channels**2
        total += depths[stage] * 2 * tokens * (projections + 2 * window * channels)
        total += 2 * tokens * channels * 2 * channels
        size = [extent / step for extent, step in zip(size, stride, strict=True)]
    return total


def residual_operations(
    shape: Triple,
    strides: Sequence[Triple],
    kernels: Sequence[Triple],
    channels: Sequence[int],
    depths: Sequence[int],
) -> float:
    """Residual stages on the output of a stem, without the projections of shortcuts.

    Args:
        shape: size of the stem's output (z, y, x).
        strides, kernels: stride and kernel size of each stage (z, y, x).
        channels: channels of the stem, then of each stage's output.
        depths: residual blocks of each stage.
    """
    size = [float(voxels) for voxels in shape]
    total = 0.0
    for stage, stride in enumerate(strides):
        size = [extent / step for extent, step in zip(size, stride, strict=True)]
        inputs, outputs = channels[stage], channels[stage + 1]
        pairs = inputs * outputs + (2 * depths[stage] - 1) * outputs**2
        total += 2 * math.prod(size) * math.prod(kernels[stage]) * pairs
    return total


def affordable_cells(operations: float, channels: int, layers: int, mlp_ratio: float) -> float:
    """How many cells the two blocks of the Domain Invariance Module can attend over within a budget; not rounded.

    Args:
        operations: the budget: floating point operations of both blocks together on one image.
        channels: channels of the tokens.
        layers: attention layers of each block.
        mlp_ratio: hidden channels of the feed-forward networks, relative to `channels`.
    """
    blocks = 2 * layers
    # Projections and feed-forward networks grow with the cells, attention with their square.
    linear = blocks * (8 + 4 * mlp_ratio) * channels**2
    square = blocks * 4 * channels
    return (math.sqrt(linear**2 + 4 * square * operations) - linear) / (2 * square)
