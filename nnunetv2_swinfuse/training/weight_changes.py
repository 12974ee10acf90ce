"""How far training has moved the pretrained weights from those that it started with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from copy import deepcopy

import torch
from torch import nn

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.tensor_names import part_of
from nnunetv2_swinfuse.architecture.transfer import transfer_encoder
from nnunetv2_swinfuse.architecture.weight_decay import decays


def relative_changes(
    network: nn.Module, encoder: Encoder, image_channels: int, names: Collection[str], dim_scale: float = 1.0
) -> dict[str, float]:
    """The change of each pretrained part of a network, relative to where it started.

    Norm of the difference between the weights now and those that the encoder gives, divided by the norm of the latter;
    both over the matrices and kernels of the part. Norms and biases are left out: gains near 1 would hide how far small
    matrices have moved. 0 is unchanged; independent weights of the same size have about 1.4.

    Args:
        network: a trained SwinFUSE network; it stays as it is.
        encoder: the encoder that it started from.
        image_channels: number of channels of the images.
        names: names of the pretrained parameters.
        dim_scale: factor that the Domain Invariance Module's update started with.

    Returns:
        By part, such as `encoder stage 0`, in the order of the network.

    Raises:
        TransferError: when the encoder does not fit the network.
    """
    start = deepcopy(network).cpu()
    transfer_encoder(start, encoder, image_channels)
    if start.encoder.domain_invariance is not None:
        start.encoder.domain_invariance.scale_update(dim_scale)
    before = dict(start.named_parameters())
    squares: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in names and decays(name, parameter):
                change = parameter.cpu().double() - before[name].double()
                squares[part_of(name)][0] += float(change.square().sum())
                squares[part_of(name)][1] += float(before[name].double().square().sum())
    return {part: (moved / size) ** 0.5 for part, (moved, size) in squares.items() if size}
