"""`swinfuse_export`: a trained model as a zip that stock nnU-Net installs and runs, with manifest and model card.

Left out is what inference does not need or what says something of patients or machines: optimiser states, per-case
scores with their file names, debug.json, logs, local paths, and postprocessing.pkl, which runs code when it is opened.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.compatibility import PACKAGE
from nnunetv2_swinfuse.errors import InputError, errors_without_traceback
from nnunetv2_swinfuse.inference.check import add_model_arguments, model_folder
from nnunetv2_swinfuse.inference.manifest import MANIFEST, Manifest
from nnunetv2_swinfuse.inference.model_card import INSTALLATION, MODEL_CARD, installation_text, model_card
from nnunetv2_swinfuse.inference.model_description import ModelDescription, describe_model, read_json
from nnunetv2_swinfuse.inference.model_files import FINAL_CHECKPOINT, FOLD_OF_ALL, find_folds
from nnunetv2_swinfuse.inference.plan_safety import check_plans
from nnunetv2_swinfuse.inference.training_images import RECORD, find_orientations, record
from nnunetv2_swinfuse.inference.verify import verify_zip
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, FINGERPRINT_FILE, PLANS_FILE
from nnunetv2_swinfuse.plain_loading import load_plain
from nnunetv2_swinfuse.training.provenance import PROVENANCE_BLOCK

PROGRAM = "swinfuse_export"
VALIDATION_SUMMARY = "validation/summary.json"
PACKAGES = (PACKAGE, "nnunetv2", "torch", "dynamic-network-architectures", "numpy", "SimpleITK")
# Zip's earliest date: the same model gives the same bytes, whenever it is exported.
DATE = (1980, 1, 1, 0, 0, 0)
NOT_STATED = "not stated by the exporter"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point. Exits with 0, or with 2 when the model cannot be exported."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.splitlines()[0] if __doc__ else None)
    add_model_arguments(parser)
    parser.add_argument("-o", type=Path, required=True, metavar="ZIP", help="the zip to write")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds; default: all that have the checkpoint")
    parser.add_argument("-chk", default=FINAL_CHECKPOINT, help=f"default: {FINAL_CHECKPOINT}")
    parser.add_argument("--intended_use", help="a sentence for the model card")
    parser.add_argument("--limits", help="what the model was not tested on, for the model card")
    parser.add_argument("--weights_licence", default=NOT_STATED, help="licence of the weights")
    parser.add_argument("--data_licence", help="licence of the training data; default: dataset.json's")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing zip")
    options = parser.parse_args(arguments)
    with errors_without_traceback(PROGRAM):
        digest = export_model(
            model_folder(options), options.o, options.f, options.chk,
            words={"intended_use": options.intended_use, "limits": options.limits},
            licences={"weights": options.weights_licence, "data": options.data_licence},
            overwrite=options.overwrite,
        )  # fmt: skip
    print(f"{options.o}: exported and verified; SHA-256 {digest}")
    print(f"Publish the hash beside the zip: swinfuse_verify {options.o.name} --sha256 {digest}")
    raise SystemExit(0)


def export_model(
    folder: Path,
    target: Path,
    folds: Sequence[str] | None = None,
    checkpoint: str = FINAL_CHECKPOINT,
    words: Mapping[str, str | None] | None = None,
    licences: Mapping[str, str | None] | None = None,
    overwrite: bool = False,
) -> str:
    """Writes the zip under a temporary name, verifies it as its receiver would, and then moves it in place.

    Args:
        folder: the model's, `DATASET/TRAINER__PLANS__CONFIGURATION`.
        target: the zip.
        folds: such as `0` or `all`; None for all that have the checkpoint.
        checkpoint: name of the file in each fold's folder.
        words: `intended_use` and `limits` for the model card.
        licences: of `weights` and `data`.
        overwrite: whether an existing zip may be replaced.

    Returns:
        SHA-256 of the zip.

    Raises:
        InputError: when the model is incomplete or damaged, could not be verified, or when the zip exists or cannot be
            written.
    """
    folder = folder.resolve()
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists; choose another name, or replace it with --overwrite")
    model = f"{folder.parent.name}/{folder.name}"
    if not folder.parent.name.startswith("Dataset") or folder.name.count("__") != 2:
        raise InputError(
            f"{folder}: not a model's folder by its name, expected DATASET/TRAINER__PLANS__CONFIGURATION; nnU-Net "
            "finds an installed model by these names"
        )
    described = describe_model(folder)
    check_plans(described.plans, folder / PLANS_FILE)
    names = find_folds(folder, folds, checkpoint)
    try:
        for left in target.parent.glob(f"{target.name}.*.tmp{target.suffix}"):
            # Of an export that was killed.
            left.unlink()
        with atomic_write(target) as draft:
            with zipfile.ZipFile(draft, "w") as archive:
                _write(archive, model, described, names, checkpoint, words or {}, licences or {})
            digest = verify_zip(draft).sha256
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}); make room or choose another"
        ) from error
    return digest


def _write(
    archive: zipfile.ZipFile,
    model: str,
    described: ModelDescription,
    folds: Sequence[str],
    checkpoint: str,
    words: Mapping[str, str | None],
    licences: Mapping[str, str | None],
) -> None:
    folder, plans, dataset_json = described.folder, described.plans, described.dataset_json
    files: dict[str, dict[str, Any]] = {}

    def add(name: str, content: bytes) -> None:
        files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        archive.writestr(_entry(f"{model}/{name}"), content)

    add(PLANS_FILE, _json(_without_paths(plans)))
    # Names of the training files are of no use elsewhere, and may be names of patients.
    add(DATASET_FILE, _json({k: v for k, v in dataset_json.items() if k not in ("dataset", "training", "test")}))
    add(FINGERPRINT_FILE, _json(read_json(folder / FINGERPRINT_FILE)))
    number = len(described.spacings) * len(described.channels)
    orientations = find_orientations(folder, described.dataset, described.file_ending, number)
    if orientations is not None:
        add(RECORD, record(orientations[0]))
    else:
        print(
            f"{PROGRAM}: nnUNet_raw does not have the {number} files of the training images of {described.dataset}, so "
            "those who use this model cannot have the orientation of their images checked",
            file=sys.stderr,
        )
    scores: dict[str, Mapping[str, Any]] = {}
    missing: dict[str, str] = {}
    training: dict[str, Any] = {}
    for fold in tqdm(folds, "folds", disable=len(folds) < 2):
        content = load_plain(folder / fold / checkpoint)
        training = training or _training(content, plans, folds, checkpoint)
        add(f"{fold}/{FINAL_CHECKPOINT}", _inference_checkpoint(content, folder / fold / checkpoint))
        summary = folder / fold / VALIDATION_SUMMARY
        if reason := _not_measured(summary, folder / fold / checkpoint):
            missing[fold] = reason
        else:
            scores[fold] = {k: v for k, v in read_json(summary).items() if k in ("foreground_mean", "mean")}
            add(f"{fold}/{VALIDATION_SUMMARY}", _json(scores[fold]))
        curves = folder / fold / "progress.png"
        if curves.is_file():
            add(f"{fold}/progress.png", curves.read_bytes())
    stated = {
        "code": "Apache-2.0 (nnunetv2-swinfuse, nnunetv2)",
        "weights": licences.get("weights") or NOT_STATED,
        "data": licences.get("data") or str(dataset_json.get("licence") or dataset_json.get("license") or NOT_STATED),
    }
    versions = _versions()
    card = model_card(model, described, training, scores, missing, stated, versions, words)
    add(MODEL_CARD, card.encode())
    add(INSTALLATION, installation_text(model, versions, training).encode())
    archive.writestr(_entry(f"{model}/{MANIFEST}"), Manifest(model, files, versions, stated, training).to_json())


def _not_measured(summary: Path, checkpoint: Path) -> str:
    """Why nnU-Net's validation summary of a fold says nothing of a checkpoint on new images; empty where it does."""
    if checkpoint.name != FINAL_CHECKPOINT:
        return f"nnU-Net's validation was made with {FINAL_CHECKPOINT}, these are the weights of {checkpoint.name}"
    if checkpoint.parent.name == FOLD_OF_ALL:
        return "trained on all images, and nnU-Net validates it on the same ones"
    if not summary.is_file():
        return "no validation summary"
    if summary.stat().st_mtime < checkpoint.stat().st_mtime:
        return f"validated before this {checkpoint.name} was written: run nnUNetv2_train with --val"
    return ""


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o100644 << 16
    return entry


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _without_paths(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Plans whose `swinfuse` blocks name the encoder by its file name and hash only, not by a path of this machine."""
    configurations = {}
    for name, block in plans["configurations"].items():
        provenance = block.get(PROVENANCE_BLOCK)
        if provenance is not None:
            paths = ("encoder", "encoder_source", "sizes_from")
            kept = {k: Path(v).name if k in paths and isinstance(v, str) else v for k, v in provenance.items()}
            block = {**block, "swinfuse": kept}
        configurations[name] = block
    return {**plans, "configurations": configurations}


def _training(
    content: Mapping[str, Any], plans: Mapping[str, Any], folds: Sequence[str], checkpoint: str
) -> dict[str, Any]:
    try:
        configuration = content["init_args"]["configuration"]
        architecture = plans["configurations"][configuration].get("architecture", {})
        previous_stage = PlansManager(dict(plans)).get_configuration(configuration).previous_stage_name
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{checkpoint}: names no configuration of plans.json ({type(error).__name__}: {error}); not of this model"
        ) from error
    provenance = dict(content.get(PROVENANCE_BLOCK, {}))
    return {
        "dataset": plans["dataset_name"],
        "configuration": configuration,
        "folds": list(folds),
        "checkpoint": checkpoint,
        "epochs": content.get("current_epoch"),
        "trainer": provenance.get("trainer", content["trainer_name"]),
        "network": architecture.get("network_class_name"),
        "encoder_sha256": provenance.get("encoder_sha256"),
        "pretrained_on": (provenance.get("collection") or {}).get("name"),
        **({} if previous_stage is None else {"previous_stage": previous_stage}),
    }


def _inference_checkpoint(content: Mapping[str, Any], path: Path) -> bytes:
    """What nnU-Net's predictor reads, and where it comes from; the same weights give the same bytes."""
    try:
        provenance = _without_paths({"configurations": {"": {PROVENANCE_BLOCK: content.get(PROVENANCE_BLOCK, {})}}})
        kept = {
            "network_weights": dict(content["network_weights"]),
            "trainer_name": content["trainer_name"],
            "init_args": {key: content["init_args"][key] for key in ("configuration", "fold")},
            "inference_allowed_mirroring_axes": content.get("inference_allowed_mirroring_axes"),
            "current_epoch": content.get("current_epoch"),
            PROVENANCE_BLOCK: provenance["configurations"][""][PROVENANCE_BLOCK],
        }
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: no checkpoint of nnU-Net ({type(error).__name__}: {error})") from error
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    return buffer.getvalue()


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions


if __name__ == "__main__":
    main()
