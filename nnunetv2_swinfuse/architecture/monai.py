"""Weights of MONAI's Swin UNETR and of its self-supervised pretraining, under our names.

MONAI's axes are x, y, z, ours z, y, x: patch filters, merging weights and bias tables are turned, so that an image read
by nnU-Net gives the features that the same image, read by MONAI, gave there. Facts from the module
`monai.networks.nets.swin_unetr` of the versions 1.0 to 1.6.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import (
    READING_ERRORS,
    Encoder,
    EncoderFileError,
    check_architecture,
    check_tensors,
)
from nnunetv2_swinfuse.architecture.tensor_names import (
    MERGING,
    PATCH_BIAS,
    PATCH_WEIGHT,
    block_of,
    stage_of,
    stage_prefix,
)
from nnunetv2_swinfuse.architecture.topology import Triple

Merging = Literal["legacy", "merging", "mergingv2"]
ClampedBias = Literal["monai", "offsets"]

# Sub-grids in MONAI's `merging` order, first voxel (x, y, z) of each.
_MERGING_SUBGRIDS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))

# In every plain Swin encoder of MONAI, together with the patch embedding.
FIRST_BLOCK = "layers1.0.blocks.0."
_BLOCK_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "mlp.linear1": "mlp.expand",
    "mlp.linear2": "mlp.reduce",
    "mlp.fc1": "mlp.expand",
    "mlp.fc2": "mlp.reduce",
}
_BIAS_TABLE = "attn.relative_position_bias_table"


@dataclass(frozen=True)
class MonaiReading:
    """What a MONAI checkpoint does not say about itself.

    Attributes:
        merging: how its network joined sub-grids. `legacy`: `downsample="merging"` before MONAI 1.5, with which all
            checkpoints of that time were trained, the published self-supervised ones too; `merging`: the same name
            from 1.5 on; `mergingv2`.
        clamped_bias: `monai` keeps its lookup of the position bias in windows clamped to small maps, as it was trained;
            `offsets` looks up the true offsets.
    """

    merging: Merging = "legacy"
    clamped_bias: ClampedBias = "monai"

    def __post_init__(self) -> None:
        for name, choices in (("merging", get_args(Merging)), ("clamped_bias", get_args(ClampedBias))):
            if getattr(self, name) not in choices:
                raise ValueError(f"MONAI {name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")


def encoder_from_monai(content: Mapping[str, Any], reading: MonaiReading, path: str) -> Encoder:
    """The Swin encoder of a MONAI checkpoint, of whatever prefix; decoders and heads are left out.

    Sizes are read from the tensors. The encoder has no Domain Invariance Module.

    Args:
        content: what `torch.load(path, weights_only=True)` gave: a state dict, or a dictionary that holds one.
        reading: what the file does not say.
        path: named in errors.

    Raises:
        EncoderFileError: for a file without a MONAI Swin encoder, with several, or with one that this encoder cannot
            be.
    """
    state, prefix = _find_encoder(content, path)
    weights: dict[str, Tensor] = {}
    foreign, left_out = [], []
    for name, tensor in state.items():
        if not name.startswith(prefix):
            left_out.append(name.removeprefix("module."))
            continue
        inner = name.removeprefix(prefix)
        if inner.endswith("relative_position_index"):
            continue
        our_name = _our_name(inner)
        if our_name is not None and our_name not in weights:
            weights[our_name] = tensor
        elif our_name is not None or re.match(r"(layers\d|patch_embed\.|norm\.)", inner):
            foreign.append(name)
        else:
            left_out.append(inner)
    if foreign:
        raise EncoderFileError(
            f"{path}: {len(foreign)} tensors of the encoder have no place in ours, such as {foreign[0]!r}: Swin UNETR "
            "with use_v2, patch_norm or Hyena blocks is not supported; use a checkpoint of the plain network"
        )
    try:
        weights = check_tensors(weights)
        settings = _read_settings(weights, reading)
        strides: tuple[Triple, ...] = ((1, 1, 1), *((2, 2, 2),) * (1 + len(settings.depths)))
        # Shapes are the same before and after turning, which needs them to be right.
        check_architecture(weights, settings, strides, weights[PATCH_WEIGHT].shape[1])
    except READING_ERRORS as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise EncoderFileError(
            f"{path}: not a usable MONAI Swin encoder ({kind}{error}; names are ours). Copy the file again from its "
            "source, or use a checkpoint of MONAI's plain Swin UNETR"
        ) from error
    return Encoder(
        {name: _turn(name, tensor, reading) for name, tensor in weights.items()},
        settings,
        strides,
        input_channels=weights[PATCH_WEIGHT].shape[1],
        collection={
            "name": f"an unknown collection (MONAI Swin UNETR, read with merging={reading.merging}, "
            f"clamped_bias={reading.clamped_bias})"
        },
        left_out=tuple(left_out),
        path=path,
    )


def _find_encoder(content: Mapping[str, Any], path: str) -> tuple[dict[str, Tensor], str]:
    """The state dict that holds an encoder, and the prefix of its names: '', 'module.', 'swinViT.', ...

    Raises:
        EncoderFileError: when there is none, or more than one.
    """
    dictionaries: dict[str | None, Mapping[str, Any]] = {None: content}
    dictionaries |= {key: value for key, value in content.items() if isinstance(value, Mapping)}
    states = {
        key: {str(name): tensor for name, tensor in dictionary.items() if isinstance(tensor, Tensor)}
        for key, dictionary in dictionaries.items()
    }
    encoders = [(key, prefix) for key, state in states.items() for prefix in _prefixes(state)]
    if not encoders:
        names = [name for state in states.values() for name in state]
        raise EncoderFileError(
            f"{path}: contains no encoder, neither of SwinFUSE nor of MONAI's Swin UNETR (expected tensors "
            f"'...{PATCH_WEIGHT}' and '...{FIRST_BLOCK}...'; found {len(names)} tensors"
            f"{', such as ' + repr(names[0]) if names else ''}). Name a file that swinfuse_pretrain published, or "
            "MONAI weights"
        )
    if len(encoders) > 1:
        listing = ", ".join(repr(f"{prefix}..." if key is None else f"{key}: {prefix}...") for key, prefix in encoders)
        # Of nested prefixes the longest, which selects one encoder.
        key, prefix = max(encoders, key=lambda pair: len(pair[1]))
        state = "state" if key is None else f"state['{key}']"
        raise EncoderFileError(
            f"{path}: contains {len(encoders)} encoders ({listing}), such as a teacher and a student; it is not clear "
            'which one to use. Keep one, for example: python -c "import torch; '
            f"state = torch.load('{path}', weights_only=True); torch.save({{n: t for n, t in {state}.items() "
            f"if n.startswith('{prefix}') and isinstance(t, torch.Tensor)}}, 'encoder.pt')\""
        )
    key, prefix = encoders[0]
    return states[key], prefix


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    candidates = [name.removesuffix(PATCH_WEIGHT) for name in state if name.endswith(PATCH_WEIGHT)]
    return [prefix for prefix in candidates if any(name.startswith(prefix + FIRST_BLOCK) for name in state)]


def _our_name(name: str) -> str | None:
    if name in (PATCH_WEIGHT, PATCH_BIAS):
        return name
    match = re.fullmatch(r"layers(\d+)\.0\.(.+)", name)
    if match is None:
        return None
    stage, suffix = stage_prefix(int(match[1]) - 1), match[2]
    if suffix in ("downsample.norm.weight", "downsample.norm.bias", "downsample.reduction.weight"):
        return stage + suffix.replace("downsample", "merging")
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", suffix)
    if block is None:
        return None
    if block[2] == _BIAS_TABLE:
        return stage + block[1] + "attention.relative_position_bias"
    layer, _, kind = block[2].rpartition(".")
    return stage + block[1] + f"{_BLOCK_NAMES[layer]}.{kind}" if layer in _BLOCK_NAMES else None


def _turn(name: str, tensor: Tensor, reading: MonaiReading) -> Tensor:
    """From axes x, y, z to z, y, x."""
    if name == PATCH_WEIGHT:
        return tensor.permute(0, 1, 4, 3, 2).contiguous()
    if name.endswith("relative_position_bias"):
        side = round(tensor.shape[0] ** (1 / 3))
        return tensor.reshape(side, side, side, -1).permute(2, 1, 0, 3).reshape(tensor.shape).contiguous()
    if MERGING in name and reading.merging != "legacy":  # legacy networks join the same sub-grids here as there
        subgrids = tensor.unflatten(-1, (8, -1))
        source = [_subgrid_index(x, y, z, reading.merging) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
        return subgrids[..., source, :].flatten(-2).contiguous()
    return tensor.clone()


def _subgrid_index(x: int, y: int, z: int, merging: Merging) -> int:
    return _MERGING_SUBGRIDS.index((x, y, z)) if merging == "merging" else 4 * x + 2 * y + z


def _read_settings(weights: Mapping[str, Tensor], reading: MonaiReading) -> EncoderSettings:
    """Sizes from names and shapes; raises ValueError, or KeyError for a tensor that is missing."""
    kernel = tuple(weights[PATCH_WEIGHT].shape[2:])
    if kernel != (2, 2, 2):
        raise ValueError(f"patch size {kernel}, expected (2, 2, 2)")
    blocks: dict[int, set[str]] = {}
    for name in weights:
        stage, block = stage_of(name), block_of(name)
        if stage is not None and block is not None:
            blocks.setdefault(stage, set()).add(block)
    stages = sorted(blocks)
    tables = [weights[f"{stage_prefix(stage)}blocks.0.attention.relative_position_bias"] for stage in stages]
    expand = weights[f"{stage_prefix(0)}blocks.0.mlp.expand.weight"]
    if expand.ndim != 2 or not expand.numel() or any(table.ndim != 2 for table in tables):
        raise ValueError("a feed-forward weight or position bias table that is no matrix")
    side = round(tables[0].shape[0] ** (1 / 3))
    if side**3 != tables[0].shape[0] or side % 2 == 0:
        raise ValueError(f"a bias table of {tables[0].shape[0]} rows; expected that of a cubic window")
    return EncoderSettings(
        feature_size=weights[PATCH_WEIGHT].shape[0],
        depths=tuple(len(blocks[stage]) for stage in stages),
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=(side + 1) // 2,
        mlp_ratio=expand.shape[0] / expand.shape[1],
        domain_invariance=None,
        monai_legacy_merging=reading.merging == "legacy",
        monai_clamped_bias=reading.clamped_bias == "monai",
    )
