"""Names of the networks' tensors: which part of a network a tensor belongs to, and which of them are pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

PATCH_EMBEDDING = "patch_embed."
ENCODER = "encoder."
# What pretraining gives, in every network.
PRETRAINED = (PATCH_EMBEDDING, ENCODER)
# What follows the encoder: pretrained only with the whole network, and without the segmentation layers.
DECODER_PARTS = ("stem.", "skips.", "decoder.")
SEGMENTATION_LAYERS = "decoder.seg_layers."
DOMAIN_INVARIANCE = "encoder.domain_invariance."
STAGES = "encoder.stages."
MERGING = ".merging."
BLOCKS = ".blocks."
# What sees the image: the only tensors whose shape depends on its channels. Swin's, the residual encoder's, and the
# stem's beside Swin.
PATCH_WEIGHT = "patch_embed.proj.weight"
PATCH_BIAS = "patch_embed.proj.bias"
STEM_WEIGHT = "patch_embed.convs.0.conv.weight"
FULL_RESOLUTION_WEIGHT = "stem.convs.0.conv.weight"
# dynamic-network-architectures registers each layer of a block by its kind and once more in a sequence.
SECOND_NAME = ".all_modules."

PARTS = {
    "patch_embed": "patch embedding",
    "stem": "stem at full resolution",
    "skips": "skip convolutions",
    "bottleneck": "bottleneck convolutions",
}

Value = TypeVar("Value")


def pretrained(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The tensors of the patch embedding (or stem) and the encoder."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(PRETRAINED)}


def pretrained_decoder(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Stem, skips and decoder without the segmentation layers: what pretraining of the whole network adds."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(DECODER_PARTS) and not name.startswith(SEGMENTATION_LAYERS)
    }


def stage_prefix(stage: int) -> str:
    """The prefix of the names of an encoder stage's tensors; stages count from 0."""
    return f"{STAGES}{stage}."


def stage_of(name: str) -> int | None:
    """The encoder stage that a tensor belongs to, counted from 0; None for a tensor of no stage."""
    stage = name.removeprefix(STAGES).split(".")[0]
    return int(stage) if name.startswith(STAGES) and stage.isdecimal() else None


def block_of(name: str) -> str | None:
    """The number, as text, of the block of its stage that a tensor belongs to; None for a tensor of no block."""
    _, separator, block = name.partition(BLOCKS)
    return block.split(".")[0] if separator else None


def part_of(name: str) -> str:
    """Describes the part of the network that a tensor belongs to, for messages."""
    if name.startswith(DOMAIN_INVARIANCE):
        return "Domain Invariance Module"
    stage = stage_of(name)
    if stage is not None:
        return f"encoder stage {stage}"
    module = name.split(".")[0]
    return PARTS.get(module, module.replace("_", " "))
