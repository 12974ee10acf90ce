"""Peak GPU memory of a training step, estimated from the plan: what patch and batch size are fitted to.

The bytes are a weighted sum of sizes that a plan determines (:class:`StepSizes`). The weights were fitted to measured
steps by `benchmarks/planned_memory.py`, which prints them; fit them anew when the network keeps other tensors for its
backward pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from nnunetv2_swinfuse.architecture.topology import check_patch_size, clamp_window, triple
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet

GIGABYTE = 2**30


@dataclass(frozen=True)
class StepSizes:
    """Numbers of elements that the memory of a training step grows with.

    Attributes:
        parameters: of the network; weights, gradients, AdamW's moments, copies in half precision.
        convolutions: outputs of all convolutions of the stem, the skips, the bottleneck and the decoder.
        attention: channels times tokens of every Swin block, those that fill up the windows included.
        hidden: hidden channels times tokens of the feed-forward networks.
        logits: outputs of all resolutions; softmax and losses keep copies in float32.
    """

    parameters: float
    convolutions: float
    attention: float
    hidden: float
    logits: float


# Bytes for each element, printed by benchmarks/planned_memory.py.
BYTES_PER_ELEMENT = StepSizes(parameters=25.5, convolutions=5.65, attention=26.4, hidden=2.95, logits=15.6)


def step_sizes(
    arch_kwargs: Mapping[str, Any], patch_size: Sequence[int], batch_size: int, input_channels: int, classes: int
) -> StepSizes:
    """The sizes of a training step.

    Args:
        arch_kwargs: of :class:`SwinFUSEUNet`.
        patch_size: voxels (z, y, x).
        batch_size, input_channels, classes: as in training; classes count the background.

    Raises:
        ValueError: naming the field, for a network or a patch that is impossible.
    """
    network = _network(json.dumps(arch_kwargs), input_channels, classes)
    check_patch_size(patch_size, network.topology)
    sizes = [np.array(patch_size, dtype=np.int64)]
    for stride in network.topology.strides[1:]:
        sizes.append(sizes[-1] // np.array(stride))
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
    )


def estimate_step_memory(
    arch_kwargs: Mapping[str, Any], patch_size: Sequence[int], batch_size: int, input_channels: int, classes: int
) -> int:
    """Peak bytes of a training step in mixed precision, as `torch.cuda.max_memory_allocated` counts them.

    Args, Raises: see :func:`step_sizes`.
    """
    sizes = step_sizes(arch_kwargs, patch_size, batch_size, input_channels, classes)
    return round(sum(size * weight for size, weight in zip(astuple(sizes), astuple(BYTES_PER_ELEMENT), strict=True)))


@lru_cache(maxsize=64)
def _network(arch_kwargs: str, input_channels: int, classes: int) -> SwinFUSEUNet:
    with torch.device("meta"):
        return SwinFUSEUNet(input_channels, classes, True, **json.loads(arch_kwargs))
