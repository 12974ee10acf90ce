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

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder, EncoderFileError
from nnunetv2_swinfuse.architecture.swin_encoder import SwinEncoder

Merging = Literal["legacy", "merging", "mergingv2"]
ClampedBias = Literal["monai", "offsets"]

# Sub-grids in MONAI's `merging` order, first voxel (x, y, z) of each.
_MERGING_SUBGRIDS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))

_ANCHOR = "patch_embed.proj.weight"
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network_weights")
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
        EncoderFileError: for a file without a MONAI Swin encoder, or with one that this encoder cannot be.
    """
    state = _flat(content)
    prefix = _find_prefix(state)
    if prefix is None:
        raise EncoderFileError(
            f"{path}: no encoder in it: neither a SwinFUSE encoder nor MONAI's Swin UNETR (no tensor "
            f"'...{_ANCHOR}' beside '...layers1.0.blocks.0...'; found {len(state)} tensors"
            f"{', such as ' + repr(next(iter(state))) if state else ''})"
        )
    weights: dict[str, Tensor] = {}
    foreign, left_out = [], []
    for name, tensor in state.items():
        if not name.startswith(prefix):
            left_out.append(name.removeprefix("module."))
            continue
        inner = name.removeprefix(prefix)
        if inner.endswith("relative_position_index"):
            continue
        ours = _our_name(inner)
        if ours is not None:
            weights[ours] = _turn(ours, tensor, reading)
        elif re.match(r"(layers\d|patch_embed\.|norm\.)", inner):
            foreign.append(name)
        else:
            left_out.append(inner)
    if foreign:
        raise EncoderFileError(
            f"{path}: {len(foreign)} tensors of the encoder have no place in ours, such as {foreign[0]!r}: Swin UNETR "
            "with use_v2, patch_norm or Hyena blocks is not supported; use a checkpoint of the plain network"
        )
    settings = _read_settings(weights, reading, path)
    kernel = tuple(weights[_ANCHOR].shape[2:])
    if kernel != (2, 2, 2):
        raise EncoderFileError(f"{path}: patch size {kernel}, expected (2, 2, 2)")
    return Encoder(
        weights,
        settings,
        strides=((1, 1, 1), *((2, 2, 2),) * (1 + len(settings.depths))),
        input_channels=weights[_ANCHOR].shape[1],
        collection={
            "name": f"an unknown collection (MONAI Swin UNETR, read with merging={reading.merging}, "
            f"clamped_bias={reading.clamped_bias})"
        },
        details={"left_out": left_out},
        path=path,
    )


def _flat(content: Mapping[str, Any]) -> dict[str, Tensor]:
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _find_prefix(state: Mapping[str, Tensor]) -> str | None:
    """What stands before the encoder's names: '', 'module.', 'swinViT.', 'module.swinViT.', 'swin_vit.', ..."""
    for name in state:
        if name.endswith(_ANCHOR):
            prefix = name[: -len(_ANCHOR)]
            if any(other.startswith(prefix + "layers1.0.blocks.0.") for other in state):
                return prefix
    return None


def _our_name(name: str) -> str | None:
    if name.startswith("patch_embed.proj."):
        return name
    match = re.fullmatch(r"layers(\d+)\.0\.(.+)", name)
    if match is None:
        return None
    stage, rest = f"encoder.stages.{int(match[1]) - 1}.", match[2]
    if rest in ("downsample.norm.weight", "downsample.norm.bias", "downsample.reduction.weight"):
        return stage + rest.replace("downsample", "merging")
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", rest)
    if block is None:
        return None
    if block[2] == _BIAS_TABLE:
        return stage + block[1] + "attention.relative_position_bias"
    layer, _, kind = block[2].rpartition(".")
    return stage + block[1] + f"{_BLOCK_NAMES[layer]}.{kind}" if layer in _BLOCK_NAMES else None


def _turn(name: str, tensor: Tensor, reading: MonaiReading) -> Tensor:
    """From axes x, y, z to z, y, x."""
    if name == _ANCHOR:
        return tensor.permute(0, 1, 4, 3, 2).contiguous()
    if name.endswith("relative_position_bias"):
        side = round(tensor.shape[0] ** (1 / 3))
        if side**3 != tensor.shape[0]:
            return tensor  # no cube; refused with the sizes
        return tensor.reshape(side, side, side, -1).permute(2, 1, 0, 3).reshape(tensor.shape).contiguous()
    if ".merging." in name and reading.merging != "legacy":  # legacy networks join the same sub-grids here as there
        subgrids = tensor.unflatten(-1, (8, -1))
        source = [_place_in_monai(x, y, z, reading.merging) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
        return subgrids[..., source, :].flatten(-2).contiguous()
    return tensor.clone()


def _place_in_monai(x: int, y: int, z: int, merging: Merging) -> int:
    return _MERGING_SUBGRIDS.index((x, y, z)) if merging == "merging" else 4 * x + 2 * y + z


def _read_settings(weights: Mapping[str, Tensor], reading: MonaiReading, path: str) -> EncoderSettings:
    stages = sorted({int(name.split(".")[2]) for name in weights if name.startswith("encoder.stages.")})
    blocks = [{int(n.split(".")[4]) for n in weights if n.startswith(f"encoder.stages.{s}.blocks.")} for s in stages]
    try:
        tables = [weights[f"encoder.stages.{stage}.blocks.0.attention.relative_position_bias"] for stage in stages]
        expand = weights["encoder.stages.0.blocks.0.mlp.expand.weight"]
    except KeyError as error:
        raise EncoderFileError(f"{path}: incomplete MONAI encoder, {error} is missing") from None
    side = round(tables[0].shape[0] ** (1 / 3))
    if side**3 != tables[0].shape[0] or side % 2 == 0:
        raise EncoderFileError(f"{path}: a bias table of {tables[0].shape[0]} rows; expected that of a cubic window")
    settings = EncoderSettings(
        feature_size=weights[_ANCHOR].shape[0],
        depths=tuple(len(indices) for indices in blocks),
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=(side + 1) // 2,
        mlp_ratio=expand.shape[0] / expand.shape[1],
        domain_invariance=None,
        monai_legacy_merging=reading.merging == "legacy",
        monai_clamped_bias=reading.clamped_bias == "monai",
    )
    _check_complete(weights, settings, path)
    return settings


def _check_complete(weights: Mapping[str, Tensor], settings: EncoderSettings, path: str) -> None:
    with torch.device("meta"):
        network = SwinEncoder(settings, [(2, 2, 2)] * len(settings.depths))
    expected = {f"encoder.{name}": tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items() if name.startswith("encoder.")}
    if expected == found and "patch_embed.proj.bias" in weights:
        return
    differing = [f"{name}: expected {shape}, found {found.get(name)}" for name, shape in expected.items()
                 if found.get(name) != shape]  # fmt: skip
    differing += [f"{name}: not expected" for name in found if name not in expected]
    raise EncoderFileError(
        f"{path}: its tensors do not make a Swin encoder of {settings}: "
        + "; ".join(differing[:5] or ["no patch bias"])
    )
