"""Records on disk, before a fold's first step, what it started with, and refuses a fold that differs from the others.

Folds that start at the same time are compared as well.
"""

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
from nnunetv2_swinfuse.training.processing import processing_differences
from nnunetv2_swinfuse.training.provenance import PROVENANCE_BLOCK, Provenance

RECORD = "swinfuse.json"
# Segmentation heads start at random whatever weights are loaded.
HEADS = ".seg_layers."
PROCESSING = "processing"
# Fields of Provenance that are recorded, besides the architecture and the processing of images.
RECORDED_FIELDS = ("encoder", "encoder_sha256", "encoder_source", "pretrained_weights", "training")


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of all weights except those of the segmentation heads: it changes if other weights are loaded."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if HEADS not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def record_start(
    model_folder: Path, fold: int | str, plan_configuration: Mapping[str, Any], processing: Mapping[str, Any]
) -> None:
    """Writes `fold_N/swinfuse.json`, then compares it with the records of the other folds.

    In this order, so that of two folds that start at once at least one sees the other's record.

    Args:
        model_folder: the model's folder.
        fold: the fold that starts now.
        plan_configuration: the model's configuration in the plans, with `architecture` and `swinfuse`.
        processing: see :func:`nnunetv2_swinfuse.training.processing.processing_of`.

    Raises:
        EncoderChoiceError: when another fold started with another encoder, other weights, another network, other
            settings or another processing of images, or its record cannot be read; this fold's record is then as it
            was before.
    """
    provenance = Provenance.from_dict(plan_configuration[PROVENANCE_BLOCK])
    architecture = plan_configuration["architecture"]
    record = {
        "architecture": architecture,
        PROCESSING: processing,
        **{name: getattr(provenance, name) for name in RECORDED_FIELDS},
    }
    path = model_folder / f"fold_{fold}" / RECORD
    previous_record = path.read_text() if path.is_file() else None
    _write(path, json.dumps(record, indent=2))
    try:
        for other in sorted(model_folder.glob(f"fold_*/{RECORD}")):
            if other != path:
                _check_same_start(other, provenance, architecture, processing, fold)
    except EncoderChoiceError:
        if previous_record is None:
            path.unlink()
        else:
            _write(path, previous_record)
        raise


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def _check_same_start(
    other: Path,
    provenance: Provenance,
    architecture: Mapping[str, Any],
    processing: Mapping[str, Any],
    fold: int | str,
) -> None:
    try:
        record = json.loads(other.read_text())
        recorded = Provenance.from_dict({k: v for k, v in record.items() if k not in ("architecture", PROCESSING)})
        differences = [
            f"{name} is {getattr(recorded, name)} in that fold, {getattr(provenance, name)} in this one"
            for name in ("encoder_sha256", "pretrained_weights", "training")
            if getattr(recorded, name) != getattr(provenance, name)
        ]
        # Earlier versions did not record it.
        other_plans = processing_differences(record.get(PROCESSING, {}), processing)
        # A different encoder usually explains different sizes: only the cause is named.
        if not differences and not other_plans and record["architecture"] != architecture:
            differences = ["the network has different sizes"]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise EncoderChoiceError(
            f"{other}: damaged ({type(error).__name__}: {error}); it records what {other.parent.name} started with. "
            "Delete it if that fold is not running"
        ) from error
    if differences or other_plans:
        encoder = recorded.kept_encoder if recorded.encoder_sha256 != provenance.encoder_sha256 else None
        raise EncoderChoiceError(
            f"{other}: {other.parent.name} of this model did not start with the same plans, weights and "
            f"settings as fold {fold}: {'; '.join(differences + other_plans)}. All folds must start alike: "
            + (f"export {ENCODER}={encoder}; " if encoder else "")
            + ("use the same plans, or give the new ones a name of their own (-p NAME); " if other_plans else "")
            + "use the same SWINFUSE_* variables and -pretrained_weights. If that fold was abandoned, delete "
            f"{other.parent}"
        )
