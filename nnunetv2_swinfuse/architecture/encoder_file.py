"""The published encoder: one file of plain tensors and values, written atomically, read without code execution.

A file is accepted only if it matches its description: its tensors are finite and have the names and shapes that its
settings and strides ask for, and the digest recorded in it shows that none has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.file_hash import file_hash
from nnunetv2_swinfuse.architecture.registry import build_backbone, build_network, plans_architecture
from nnunetv2_swinfuse.architecture.tensor_names import (
    DECODER_PARTS,
    ENCODER,
    FULL_RESOLUTION_WEIGHT,
    PATCH_EMBEDDING,
    PRETRAINED,
    pretrained_decoder,
)
from nnunetv2_swinfuse.architecture.topology import Triple, triple
from nnunetv2_swinfuse.architecture.torch_file import TorchFileError, load_torch_file, save_torch_file
from nnunetv2_swinfuse.errors import UPGRADE

FORMAT = "swinfuse-encoder"
# 2: the Domain Invariance Module's cells and positions share one geometry; the weights' digest.
FORMAT_VERSION = 2
# In the folder of a run.
ENCODER_FILE = "encoder.pth"
# Where, below nnUNet_results, pretraining publishes its encoder and fine-tuning looks for one.
PUBLISHED = Path("swinfuse") / ENCODER_FILE
# Keys of the file that are no `details`.
KEYS = frozenset(
    {
        "format", "format_version", "network_weights", "weights_digest", "settings", "strides", "input_channels",
        "spacing", "modalities", "collection", "source", "decoder_weights", "decoder_digest",
    }
)  # fmt: skip
# What settings and strides, read from a file that may hold anything, can raise.
READING_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError)


class EncoderFileError(ValueError):
    """A file that is no usable encoder; the message names it, what was found and what to do."""


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder and all that transfer needs to know of it.

    Attributes:
        weights: CPU tensors named `patch_embed.*` and `encoder.*`.
        decoder_weights: those of `stem.*`, `skips.*` and `decoder.*` without the segmentation layers, where the whole
            network was pretrained; else empty.
        settings: sizes of the encoder.
        strides: stride of every stage it was pretrained with (z, y, x), the first all 1.
        input_channels: image channels it was pretrained with.
        spacing: voxel spacing of the pretraining volumes in mm (z, y, x).
        modalities: domains it saw, such as ("CT", "MR").
        collection: name and hash of the collection.
        source: where the pretraining run keeps this encoder; survives later runs, unlike the published copy.
        details: further keys of the file, such as nnssl's adaptation plan and citations.
        left_out: names of tensors in a MONAI file that are not of the encoder.
        path, sha256: the file it was read from, None for one that was not read from a file.
    """

    weights: dict[str, Tensor]
    settings: EncoderSettings
    strides: tuple[Triple, ...]
    input_channels: int = 1
    spacing: tuple[float, ...] | None = None
    modalities: tuple[str, ...] = ()
    collection: dict[str, str] = field(default_factory=dict)
    source: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    path: str | None = None
    sha256: str | None = None
    decoder_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def network_settings(self) -> dict[str, Any]:
        """Arguments that a network needs to take the pretrained stem, skips and decoder; empty without these."""
        return network_settings(self.decoder_weights, self.settings)


def save_encoder(encoder: Encoder, path: str | os.PathLike[str]) -> None:
    """Writes the file atomically.

    Raises:
        OSError: when the disk is full or the folder cannot be written; an older file at `path` is left as it was.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network_weights": _on_cpu(encoder.weights),
        "settings": encoder.settings.to_dict(),
        "strides": [list(stride) for stride in encoder.strides],
        "input_channels": encoder.input_channels,
        "spacing": None if encoder.spacing is None else [float(s) for s in encoder.spacing],
        "modalities": list(encoder.modalities),
        "collection": dict(encoder.collection),
        "source": encoder.source,
        **encoder.details,
    }
    content["weights_digest"] = weights_digest(content)
    if encoder.decoder_weights:
        # Beside the encoder: a version that does not know it reads the encoder alone.
        content["decoder_weights"] = _on_cpu(encoder.decoder_weights)
        content["decoder_digest"] = tensors_digest(content["decoder_weights"])
    save_torch_file(content, path)


def load_encoder(path: str | os.PathLike[str]) -> Encoder:
    """Reads a published encoder with `torch.load(weights_only=True)`.

    Raises:
        EncoderFileError: when the file is missing, damaged, of another kind or format, or its weights are not those
            that it describes.
    """
    path = Path(path)
    return encoder_from_content(load_content(path), path)


def load_content(path: Path) -> dict[str, Any]:
    """The dictionary of tensors and plain values in a file.

    Raises:
        EncoderFileError: saying what is wrong with the file and what to do.
    """
    if not path.is_file():
        raise EncoderFileError(f"{path}: no such encoder file. Pretrain one with: swinfuse_pretrain -d COLLECTION")
    try:
        content = load_torch_file(path)
    except TorchFileError as error:
        remedy = "Copy it again from its source, or pretrain again."
        if error.needs_code:
            remedy = (
                'If you trust its origin, convert it: python -c "import torch; '
                f"state = torch.load('{path}', map_location='cpu', weights_only=False); "
                "torch.save(state.get('state_dict', state), 'tensors.pth')\" and use tensors.pth."
            )
        raise EncoderFileError(f"{error}. {remedy}") from error
    if not isinstance(content, dict):
        raise EncoderFileError(
            f"{path}: holds a {type(content).__name__}, expected a dictionary with 'format' {FORMAT!r}. "
            "A pretraining run ends by writing encoder.pth; use that file."
        )
    return content


def encoder_from_content(content: Mapping[str, Any], path: Path) -> Encoder:
    """The encoder that a published file holds.

    Args:
        content: what :func:`load_content` gave for `path`.
        path: the file, for its hash and for errors.

    Raises:
        EncoderFileError: when the content is of another kind or format, or its weights are not those that it describes.
    """
    _check_format(content, path)
    try:
        weights = check_tensors(content["network_weights"])
        settings = EncoderSettings.from_dict(content["settings"])
        strides = tuple(triple(stride) for stride in content["strides"])
        input_channels = content["input_channels"]
        check_architecture(weights, settings, strides, input_channels)
        if content["weights_digest"] != weights_digest(content):
            raise ValueError("the weights, settings or strides have changed since the file was written")
        decoder_weights = _decoder_weights(content, settings, strides, input_channels)
        return Encoder(
            weights=weights,
            settings=settings,
            strides=strides,
            input_channels=input_channels,
            **_facts(content),
            details={str(name): value for name, value in content.items() if name not in KEYS},
            path=str(path),
            sha256=file_hash(path),
            decoder_weights=decoder_weights,
        )
    except READING_ERRORS as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise EncoderFileError(
            f"{path}: damaged or inconsistent encoder file ({kind}{error}). Copy it again from its source, or pretrain "
            "again: swinfuse_pretrain -d COLLECTION"
        ) from error


def weights_digest(content: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the tensors with their names, types and shapes, and of settings and strides.

    Args:
        content: content of an encoder file; `network_weights`, `settings`, `strides` and `input_channels` are read.
    """
    description = {name: content[name] for name in ("settings", "strides", "input_channels")}
    return tensors_digest(content["network_weights"], json.dumps(description, sort_keys=True))


def tensors_digest(tensors: Mapping[str, Tensor], description: str = "") -> str:
    """SHA-256, in hexadecimal, of a description and of tensors with their names, types and shapes."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tensors(
    weights: Any, key: str = "network_weights", prefixes: tuple[str, ...] = PRETRAINED, of: str = "encoder"
) -> dict[str, Tensor]:
    """Accepts finite floating-point tensors only: anything else under an encoder's names is no weight.

    Args:
        weights: tensors by name.
        key: of the file that holds them, for the message.
        prefixes: what the names may begin with.
        of: what has such names, for the message.

    Raises:
        ValueError: naming the tensor.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{key} is empty or no dictionary")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not name.startswith(prefixes):
            raise ValueError(f"{key} holds tensors of no {of}, such as {name!r}")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}, expected a tensor")
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is of {tensor.dtype}, {tensor.layout}, on the device {tensor.device.type}; expected dense "
                "floating-point numbers"
            )
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ValueError(f"{name} has the shape {list(tensor.shape)}, but fewer values")
        # As float32, which networks have: a larger float64 would become infinite there.
        if not tensor.float().isfinite().all():
            raise ValueError(f"{name} holds values that are not finite in float32 (NaN or Inf)")
    return dict(weights)


def check_architecture(
    weights: Mapping[str, Tensor], settings: EncoderSettings, strides: tuple[Triple, ...], input_channels: int
) -> None:
    """Compares names and shapes with those of the encoder that settings and strides describe.

    Raises:
        ValueError: listing what differs, or naming what no encoder can have.
    """
    if type(input_channels) is not int or input_channels < 1:
        raise ValueError(f"input_channels is {input_channels!r}, expected a positive whole number")
    topology = settings.topology(strides)
    if topology.convolution_strides:
        raise ValueError(f"strides list {len(strides)} stages, more than an encoder of depths {list(settings.depths)}")
    blocks = sum(settings.stage_depths(len(topology.stage_strides)))
    module = settings.to_dict()["domain_invariance"]
    layers = 0 if module is None else module["layers"]
    if blocks + layers > len(weights):
        # Before such a network is built, which could take forever.
        raise ValueError(f"settings ask for {blocks} blocks and {layers} layers, found {len(weights)} tensors in all")
    with torch.device("meta"):
        patches, encoder = build_backbone(settings, topology, input_channels)
    shapes = {f"{PATCH_EMBEDDING}{name}": tuple(tensor.shape) for name, tensor in patches.state_dict().items()}
    shapes |= {f"{ENCODER}{name}": tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    _check_shapes(weights, shapes, "an encoder")


def network_settings(weights: Mapping[str, Tensor], settings: EncoderSettings) -> dict[str, Any]:
    """Arguments of the network that tensors named `stem.*`, `skips.*` and `decoder.*` are of; empty without these.

    The stem's width is not among the settings of an encoder, and earlier versions had another rule for it.
    """
    if settings.backbone != "swin" or FULL_RESOLUTION_WEIGHT not in weights:
        return {}
    return {"stem_features": int(weights[FULL_RESOLUTION_WEIGHT].shape[0])}


def _decoder_weights(
    content: Mapping[str, Any], settings: EncoderSettings, strides: tuple[Triple, ...], input_channels: int
) -> dict[str, Tensor]:
    """Stem, skips and decoder of a file; none where only the encoder was pretrained. Raises ValueError for others."""
    if "decoder_weights" not in content:
        return {}
    weights = check_tensors(content["decoder_weights"], "decoder_weights", DECODER_PARTS, "decoder")
    with torch.device("meta"):
        architecture = plans_architecture(strides, settings, **network_settings(weights, settings))
        network = build_network(architecture, input_channels, 1)
    expected = pretrained_decoder(dict(network.named_parameters()))
    _check_shapes(weights, {name: tuple(tensor.shape) for name, tensor in expected.items()}, "a network")
    if content["decoder_digest"] != tensors_digest(weights):
        raise ValueError("the decoder's weights have changed since the file was written")
    return weights


def _check_shapes(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], of: str) -> None:
    differing = [
        f"{name}: {f'shape {tuple(weights[name].shape)}' if name in weights else 'missing'}, expected shape {shape}"
        for name, shape in shapes.items()
        if name not in weights or tuple(weights[name].shape) != shape
    ]
    differing += [f"{name}: not expected" for name in weights if name not in shapes]
    if differing:
        raise ValueError(
            f"{len(differing)} tensors are not those of {of} with its settings and strides: " + "; ".join(differing[:3])
        )


def _check_format(content: Mapping[str, Any], path: Path) -> None:
    if content.get("format") != FORMAT:
        raise EncoderFileError(
            f"{path}: not a SwinFUSE encoder (its 'format' is {content.get('format')!r}, expected {FORMAT!r}). "
            "A pretraining run ends by writing encoder.pth; use that file."
        )
    version = content.get("format_version")
    if type(version) is int and version < FORMAT_VERSION:
        raise EncoderFileError(
            f"{path}: encoder format {version}, of an older version with a different Domain Invariance Module; "
            f"this installation reads format {FORMAT_VERSION}. Pretrain again: swinfuse_pretrain -d COLLECTION"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise EncoderFileError(
            f"{path}: encoder format {version}, this installation reads format {FORMAT_VERSION}. "
            f"Either {UPGRADE}, or pretrain again with this version."
        )


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's origin as the file records it; raises ValueError naming the key."""
    spacing, modalities, source = content["spacing"], content["modalities"], content["source"]
    collection, normalisation = content["collection"], content.get("normalisation", {})
    if spacing is not None:
        spacing = tuple(float(value) for value in spacing)
        if len(spacing) != 3 or not all(math.isfinite(value) and value > 0 for value in spacing):
            raise ValueError(f"spacing is {list(spacing)}, expected three positive numbers (mm along z, y, x)")
    if not isinstance(modalities, (list, tuple)) or not all(isinstance(name, str) for name in modalities):
        raise ValueError(f"modalities is {modalities!r}, expected a list of names")
    for name, value in (("collection", collection), ("normalisation", normalisation)):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {value!r}, expected a dictionary")
    if source is not None and not isinstance(source, str):
        raise ValueError(f"source is {source!r}, expected a path")
    return {
        "spacing": spacing,
        "modalities": tuple(modalities),
        "collection": dict(collection),
        "source": source,
    }


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share memory where the tensors do: residual blocks have their layers under two names."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    return {
        name: copies.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), tensor.detach().cpu().contiguous())
        for name, tensor in weights.items()
    }
