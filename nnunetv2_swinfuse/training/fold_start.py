"""What each fold of a model started with, on disk before its first step: folds that run at once cannot differ."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nnunetv2_swinfuse.nnunet_names import ENCODER
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError

RECORD = "swinfuse.json"
# Segmentation heads start at random whatever weights are loaded.
HEADS = ".seg_layers."


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
    provenance = block["swinfuse"]
    names = ("encoder", "encoder_sha256", "encoder_source", "pretrained_weights", "training")
    start = {"architecture": block["architecture"], **{name: provenance.get(name) for name in names}}
    path = model_folder / f"fold_{fold}" / RECORD
    before = path.read_text() if path.is_file() else None
    _write(path, json.dumps(start, indent=2))
    try:
        for other in sorted(model_folder.glob(f"fold_*/{RECORD}")):
            if other != path:
                _compare(other, start, fold)
    except EncoderChoiceError:
        if before is None:
            path.unlink()
        else:
            _write(path, before)
        raise


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _compare(other: Path, start: Mapping[str, Any], fold: int | str) -> None:
    try:
        theirs = json.loads(other.read_text())
        differing = [
            f"{name} is {theirs.get(name)} in that fold, {start[name]} in this one"
            for name in ("encoder_sha256", "pretrained_weights", "training")
            if theirs.get(name) != start[name]
        ]
        if not differing and theirs["architecture"] != start["architecture"]:
            differing = ["the network has other sizes"]
    except (json.JSONDecodeError, AttributeError, KeyError) as error:
        raise EncoderChoiceError(
            f"{other}: damaged ({type(error).__name__}: {error}); it records what {other.parent.name} started with. "
            "Delete it if that fold is not running"
        ) from error
    if differing:
        kept = theirs.get("encoder_source") or theirs.get("encoder")
        raise EncoderChoiceError(
            f"{other}: {other.parent.name} of this model started with something else than fold {fold} would: "
            f"{'; '.join(differing)}. All folds need the same: "
            + (f"export {ENCODER}={kept}; " if theirs.get("encoder_sha256") != start["encoder_sha256"] and kept else "")
            + "use the same SWINFUSE_* variables and -pretrained_weights. If that fold was given up, delete "
            f"{other.parent}"
        )
