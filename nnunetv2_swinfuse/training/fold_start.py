"""What each fold of a model started with, on disk before its first step: folds that run at once cannot differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.nnunet_names import ENCODER
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from nnunetv2_swinfuse.training.provenance import Provenance

RECORD = "swinfuse.json"
# Segmentation heads start at random whatever weights are loaded.
HEADS = ".seg_layers."
# What a record holds besides the architecture.
RECORDED = ("encoder", "encoder_sha256", "encoder_source", "pretrained_weights", "training")


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of all weights but the segmentation heads': tells whether something else was loaded since."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if HEADS not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def record_start(model_folder: Path, fold: int | str, block: Mapping[str, Any]) -> None:
    """Writes `fold_N/swinfuse.json`, then reads the other folds'; in this order, so that one of two sees the other.

    Args:
        model_folder: the model's folder.
        fold: the fold that starts now.
        block: its configuration in the plans, with `architecture` and `swinfuse`.

    Raises:
        EncoderChoiceError: when another fold started with another encoder, other weights, another network or other
            settings, or its record cannot be read; this fold's record is then as it was before.
    """
    provenance = Provenance.from_dict(block["swinfuse"])
    start = {"architecture": block["architecture"], **{name: getattr(provenance, name) for name in RECORDED}}
    path = model_folder / f"fold_{fold}" / RECORD
    previous = path.read_text() if path.is_file() else None
    _write(path, json.dumps(start, indent=2))
    try:
        for other in sorted(model_folder.glob(f"fold_*/{RECORD}")):
            if other != path:
                _compare(other, provenance, block["architecture"], fold)
    except EncoderChoiceError:
        if previous is None:
            path.unlink()
        else:
            _write(path, previous)
        raise


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def _compare(other: Path, provenance: Provenance, architecture: Mapping[str, Any], fold: int | str) -> None:
    try:
        record = json.loads(other.read_text())
        recorded = Provenance.from_dict({name: value for name, value in record.items() if name != "architecture"})
        differing = [
            f"{name} is {getattr(recorded, name)} in that fold, {getattr(provenance, name)} in this one"
            for name in ("encoder_sha256", "pretrained_weights", "training")
            if getattr(recorded, name) != getattr(provenance, name)
        ]
        if not differing and record["architecture"] != architecture:
            differing = ["the network has other sizes"]
    except (ValueError, AttributeError, KeyError) as error:
        raise EncoderChoiceError(
            f"{other}: damaged ({type(error).__name__}: {error}); it records what {other.parent.name} started with. "
            "Delete it if that fold is not running"
        ) from error
    if differing:
        encoder = recorded.kept_encoder if recorded.encoder_sha256 != provenance.encoder_sha256 else None
        raise EncoderChoiceError(
            f"{other}: {other.parent.name} of this model did not start with the same weights and settings as fold "
            f"{fold}: {'; '.join(differing)}. All folds need the same: "
            + (f"export {ENCODER}={encoder}; " if encoder else "")
            + "use the same SWINFUSE_* variables and -pretrained_weights. If that fold was abandoned, delete "
            f"{other.parent}"
        )
