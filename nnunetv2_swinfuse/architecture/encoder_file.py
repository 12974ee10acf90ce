"""The published encoder: one file of plain tensors and values, written atomically, read without code execution."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_swinfuse import plain_loading
from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.topology import Triple, triple

FORMAT = "swinfuse-encoder"
FORMAT_VERSION = 1
# Where, below nnUNet_results, pretraining publishes its encoder and fine-tuning looks for one.
PUBLISHED = Path("swinfuse") / "encoder.pth"


class EncoderFileError(ValueError):
    """A file that is no usable encoder; the message names it, what was found and what to do."""


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder and all that transfer needs to know of it.

    Attributes:
        weights: CPU tensors named `patch_embed.*` and `encoder.*`.
        settings: sizes of the encoder.
        strides: stride of every stage it was pretrained with (z, y, x), the first all 1.
        input_channels: image channels it was pretrained with.
        spacing: voxel spacing of the pretraining volumes in mm (z, y, x).
        modalities: domains it saw, such as ("CT", "MR").
        collection: name and hash of the collection.
        source: where the pretraining run keeps this encoder; survives later runs, unlike the published copy.
        details: further keys of the file, such as nnssl's adaptation plan and citations.
        path, sha256: the file it was read from, None for one that was just made.
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
    path: str | None = None
    sha256: str | None = None


def save_encoder(encoder: Encoder, path: str | os.PathLike[str]) -> None:
    """Writes the file under a temporary name and moves it in place, so that a reader never meets half of it."""
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
    save_atomically(content, path)


def save_atomically(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """`torch.save` to a temporary file beside `path`, flushed to disk and then moved onto it.

    Raises:
        OSError: when the disk is full or the folder cannot be written; an older file at `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_encoder(path: str | os.PathLike[str]) -> Encoder:
    """Reads a published encoder with `torch.load(weights_only=True)`.

    Raises:
        EncoderFileError: when the file is missing, corrupted, of another kind, incompatible or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise EncoderFileError(f"{path}: no such encoder file. Pretrain one with: swinfuse_pretrain -d COLLECTION")
    return encoder_from_content(load_plain(path), path)


def encoder_from_content(content: Mapping[str, Any], path: Path) -> Encoder:
    """The encoder that a published file holds.

    Args:
        content: what :func:`load_plain` gave for `path`.
        path: the file, for its hash and for errors.

    Raises:
        EncoderFileError: when the content is of another kind, incompatible or of a newer format.
    """
    if content.get("format") != FORMAT:
        raise EncoderFileError(
            f"{path}: not a SwinFUSE encoder (its 'format' is {content.get('format')!r}, expected {FORMAT!r}). "
            "A pretraining run ends by writing encoder.pth; use that file."
        )
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise EncoderFileError(
            f"{path}: encoder format {version}, this installation reads up to {FORMAT_VERSION}. "
            "Upgrade with: pip install --upgrade nnunetv2-swinfuse"
        )
    known = {
        "format", "format_version", "network_weights", "settings", "strides", "input_channels", "spacing",
        "modalities", "collection", "source",
    }  # fmt: skip
    try:
        return Encoder(
            weights=_checked_weights(content["network_weights"]),
            settings=EncoderSettings.from_dict(content["settings"]),
            strides=tuple(triple(stride) for stride in content["strides"]),
            input_channels=int(content["input_channels"]),
            spacing=None if content["spacing"] is None else tuple(content["spacing"]),
            modalities=tuple(content["modalities"]),
            collection=dict(content["collection"]),
            source=content["source"],
            details={name: value for name, value in content.items() if name not in known},
            path=str(path),
            sha256=file_hash(path),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderFileError(
            f"{path}: incompatible encoder file ({type(error).__name__}: {error}). Pretrain again with this version."
        ) from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_plain(path: Path) -> dict[str, Any]:
    """A dictionary of tensors and plain values, read without code execution.

    Raises:
        EncoderFileError: saying what is wrong with the file and what to do.
    """
    try:
        return plain_loading.load_plain(path)
    except plain_loading.UnsafeFileError as error:
        raise EncoderFileError(
            f"{path}: needs code execution to be read, or is corrupted, and was refused "
            f"({error.__cause__ and str(error.__cause__).splitlines()[0]}). "
            'If you trust its origin, convert it: python -c "import torch; '
            f"state = torch.load('{path}', map_location='cpu', weights_only=False); "
            "torch.save(state.get('state_dict', state), 'tensors.pth')\" and use tensors.pth."
        ) from error
    except plain_loading.PlainFileError as error:
        raise EncoderFileError(
            f"{error}. It is corrupted: copy it again from its source or pretrain anew; expected a dictionary with "
            f"'format' {FORMAT!r}."
        ) from error


def _checked_weights(weights: Any) -> dict[str, Tensor]:
    if not isinstance(weights, dict) or not weights:
        raise ValueError("network_weights is empty or no dictionary")
    foreign = [name for name in weights if not str(name).startswith(("patch_embed.", "encoder."))]
    if foreign:
        raise ValueError(f"network_weights holds tensors of no encoder, such as {foreign[0]!r}")
    return dict(weights)


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share memory where the tensors do: residual blocks have their layers under two names."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    return {
        name: copies.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), tensor.detach().cpu().contiguous())
        for name, tensor in weights.items()
    }


def _umask() -> int:
    # The umask can only be read by setting it; mkstemp's private mode would hide the file from colleagues.
    mask = os.umask(0)
    os.umask(mask)
    return mask
