"""Peak GPU memory of a training step, estimated from the plan: what patch and batch size are fitted to.

A step has one of two peaks. At the start of the backward pass all activations are alive: a weighted sum of sizes that a
plan determines (:class:`StepSizes`). The weights were fitted to measured steps by `benchmarks/planned_memory.py`, which
prints them; fit them again when the network keeps other tensors for its backward pass. With large windows the other
peak is higher: CUDA's attention kernel returns the gradient of the position bias for every window and head before it is
summed (:func:`bias_gradient_memory`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from nnunetv2_swinfuse.architecture.topology import check_patch_size, clamp_window, triple
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from nnunetv2_swinfuse.architecture.windows import window_layout

GIBIBYTE = 2**30


@dataclass(frozen=True)
class StepSizes:
    """Numbers of elements that determine the memory of a training step.

    Attributes:
        parameters: parameters of the network, for weights, gradients, AdamW's moments and half-precision copies.
        convolutions: outputs of all convolutions of the stem, the skips, the bottleneck and the decoder.
        attention: channels times tokens of every Swin block, those that fill up the windows included.
        hidden: hidden channels times tokens of the feed-forward networks.
        logits: outputs of all resolutions; softmax and losses keep copies in float32.
        biases: position biases with their masks, one (heads, N, N) for each group of windows of each block, which the
            kernel keeps for its backward pass. They do not depend on the batch.
    """

    parameters: float
    convolutions: float
    attention: float
    hidden: float
    logits: float
    biases: float


# Bytes for each element, printed by benchmarks/planned_memory.py.
BYTES_PER_ELEMENT = StepSizes(parameters=20.8, convolutions=5.62, attention=24.4, hidden=3.68, logits=15.6, biases=1.98)
# Weights, gradients and AdamW's two moments in float32, weights in half precision.
BYTES_PER_PARAMETER = 18
HALF_PRECISION = 2
# CUDA's memory-efficient attention needs rows of the bias whose length is a multiple of this.
BIAS_ROW = 16


def step_sizes(
    arch_kwargs: Mapping[str, Any], patch_size: Sequence[int], batch_size: int, input_channels: int, classes: int
) -> StepSizes:
    """The sizes of a training step.

    Args:
        arch_kwargs: keyword arguments of :class:`SwinFUSEUNet`.
        patch_size: voxels (z, y, x).
        batch_size, input_channels, classes: as in training; classes count the background.

    Raises:
        ValueError: naming the field, for a network or a patch that is impossible.
    """
    network = _network(json.dumps(arch_kwargs), input_channels, classes)
    sizes = _resolutions(network, patch_size)
    voxels = [math.prod(int(s) for s in size) for size in sizes]
    logits = classes * sum(voxels[:-1])
    convolutions = int(network.stem.compute_conv_feature_map_size(sizes[0]))
    for skip, size in zip(network.skips, sizes[1:], strict=False):
        convolutions += int(skip.compute_conv_feature_map_size(size))
    for stage, size in zip(network.bottleneck, sizes[len(network.skips) :], strict=False):
        convolutions += int(stage.compute_conv_feature_map_size(size))
    convolutions += int(network.decoder.compute_conv_feature_map_size(patch_size)) - logits
    settings = network.settings
    attention = hidden = 0.0
    for stage, depth in enumerate(settings.depths[: len(network.topology.stage_strides)]):
        features = network.encoder.output_channels[stage] * depth
        shape = triple([int(size) for size in sizes[1 + stage]])
        window, _ = clamp_window(shape, (settings.window_size,) * 3, False)
        filled = math.prod(-(-size // width) * width for size, width in zip(shape, window, strict=True))
        attention += features * filled
        hidden += features * settings.mlp_ratio * voxels[1 + stage]
    return StepSizes(
        sum(parameter.numel() for parameter in network.parameters()),
        batch_size * convolutions,
        batch_size * attention,
        batch_size * hidden,
        batch_size * logits,
        sum(entries * len(windows) for entries, windows in _blocks(network, sizes, batch_size)),
    )


def bias_gradient_memory(
    arch_kwargs: Mapping[str, Any], patch_size: Sequence[int], batch_size: int, input_channels: int, classes: int
) -> float:
    """Bytes while the attention with the largest gradient of its bias is differentiated.

    All windows of a group go through the kernel together, and the gradient of their shared bias comes back as
    (windows, heads, N, N) in half precision, rows padded to 16 entries: 248 MB a sample at 96 x 96 x 96 voxels with
    windows of 7 and 3 heads. The largest is that of the first block, differentiated last, when of the activations
    little more than the stem's is left.

    Args, Raises: see :func:`step_sizes`.
    """
    network = _network(json.dumps(arch_kwargs), input_channels, classes)
    sizes = _resolutions(network, patch_size)
    stem = batch_size * int(network.stem.compute_conv_feature_map_size(sizes[0]))
    largest = max(entries * max(windows) for entries, windows in _blocks(network, sizes, batch_size))
    return (
        BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in network.parameters())
        + BYTES_PER_ELEMENT.convolutions * stem
        + HALF_PRECISION * largest
    )


def estimate_step_memory(
    arch_kwargs: Mapping[str, Any], patch_size: Sequence[int], batch_size: int, input_channels: int, classes: int
) -> int:
    """Peak bytes of a training step in mixed precision, as `torch.cuda.max_memory_allocated` counts them.

    Args, Raises: see :func:`step_sizes`.
    """
    sizes = step_sizes(arch_kwargs, patch_size, batch_size, input_channels, classes)
    activations = sum(size * weight for size, weight in zip(astuple(sizes), astuple(BYTES_PER_ELEMENT), strict=True))
    return round(max(activations, bias_gradient_memory(arch_kwargs, patch_size, batch_size, input_channels, classes)))


def _resolutions(network: SwinFUSEUNet, patch_size: Sequence[int]) -> list[np.ndarray]:
    """Voxels (z, y, x) of each stage, the patch first."""
    check_patch_size(patch_size, network.topology)
    sizes = [np.array(patch_size, dtype=np.int64)]
    for stride in network.topology.strides[1:]:
        sizes.append(sizes[-1] // np.array(stride))
    return sizes


def _blocks(network: SwinFUSEUNet, sizes: Sequence[np.ndarray], batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Of each Swin block the entries of one position bias (heads, N, padded N), and the windows of each group."""
    settings = network.settings
    for stage, depth in enumerate(settings.depths[: len(network.topology.stage_strides)]):
        shape = triple([int(size) for size in sizes[1 + stage]])
        for block in range(depth):
            window, shift = clamp_window(shape, (settings.window_size,) * 3, block % 2 == 1)
            groups = window_layout(batch_size, shape, window, shift, torch.device("meta")).groups
            tokens = math.prod(window)
            entries = settings.num_heads[stage] * tokens * -(-tokens // BIAS_ROW) * BIAS_ROW
            yield entries, [group.windows for group in groups]


@lru_cache(maxsize=64)
def _network(arch_kwargs: str, input_channels: int, classes: int) -> SwinFUSEUNet:
    with torch.device("meta"):
        return SwinFUSEUNet(input_channels, classes, True, **json.loads(arch_kwargs))
