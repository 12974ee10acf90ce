"""The feature maps of a frozen encoder, layer by layer, for a single image: the mode that is deployed."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_swinfuse.errors import InputError
from pretraining.voxel_probe.encoders import FrozenEncoder

EMBEDDING, DIM = "embedding", "DIM"


@torch.no_grad()
def layer_maps(network: FrozenEncoder, image: Tensor) -> dict[str, Tensor]:
    """Maps (B, C, z, y, x) by layer, in the order of the network.

    `embedding`; `DIM`, the outputs of the Domain Invariance Module in its cells, if the encoder has one; `stage 0`,
    `stage 1`... The first stage of a Swin encoder is the embedding after the module, channels normalised.

    Args:
        network: the encoder.
        image: (B, 1, z, y, x), sizes divisible by :attr:`FrozenEncoder.divisor`.
    """
    embedding = network.patch_embed(image)
    mixed = network.encoder.mix_single(embedding)
    maps = {EMBEDDING: embedding}
    if network.encoder.domain_invariance is not None:
        maps[DIM] = mixed.tokens.transpose(1, 2).unflatten(2, mixed.grid)
    return maps | {f"stage {number}": feature for number, feature in enumerate(network.encoder.features(mixed.map))}


def check_crop_size(name: str, network: FrozenEncoder, crop_size: tuple[int, ...]) -> None:
    """Raises InputError for crops that the encoder cannot take."""
    divisor = network.divisor
    if any(size < 1 or size % step for size, step in zip(crop_size, divisor, strict=True)):
        raise InputError(
            f"{name}: crops of {' x '.join(map(str, crop_size))} voxels; expected sizes (z, y, x) divisible by "
            f"{' x '.join(map(str, divisor))}. Choose them with --crop Z Y X"
        )
