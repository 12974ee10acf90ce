"""Files of nnU-Net models (checkpoint, JSON, manifest, zip): sound ones, and what may come of damaged ones."""

from __future__ import annotations

import io
import json
import re
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.export import export_model
from nnunetv2_swinfuse.inference.loading import read_json
from nnunetv2_swinfuse.inference.manifest import parse_manifest
from nnunetv2_swinfuse.inference.model_description import describe_model
from nnunetv2_swinfuse.inference.plan_safety import check_plans
from nnunetv2_swinfuse.inference.training_images import read_record
from nnunetv2_swinfuse.inference.verify import verify_zip
from nnunetv2_swinfuse.plain_loading import inspect_checkpoint, load_plain
from tests.fuzzing.reader import refused
from tests.nnunetv2_swinfuse.inference.synthetic_models import write_model, write_whole_model


@cache
def model_checkpoint() -> bytes:
    """Of nnU-Net, with numpy's numbers in its curves."""
    buffer = io.BytesIO()
    torch.manual_seed(0)
    weights = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3)}
    torch.save({"network_weights": weights, "logging": {"loss": [np.float64(1)]}, "trainer_name": "T"}, buffer)
    return buffer.getvalue()


def judge_model_checkpoint(content: bytes, path: Path) -> bool:
    """The archive's checksums guard everything."""
    path.write_bytes(content)
    try:
        with path.open("rb") as file:
            inspect_checkpoint(file, str(path))
    except InputError as error:
        refused(path, error)
    try:
        read = load_plain(path)
    except InputError as error:
        return refused(path, error)
    sound = load_plain(io.BytesIO(model_checkpoint()), "sound")
    assert read.keys() == sound.keys()
    assert all(torch.equal(read["network_weights"][name], t) for name, t in sound["network_weights"].items())
    return True


@cache
def model_json(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        return (write_model(Path(folder, "m")) / name).read_bytes()


def judge_model_json(content: bytes, path: Path) -> bool:
    """A model's folder whose plans, dataset or fingerprint are damaged."""
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json", "swinfuse_training_images.json"):
        (path.parent / name).write_bytes(model_json(name))
    path.write_bytes(content)
    try:
        described = describe_model(path.parent)
        check_plans(read_json(path.parent / "plans.json"), path.parent / "plans.json")
    except InputError as error:
        return refused(path.parent, error)
    assert described.channels
    assert np.isfinite(described.extents).all()
    assert described.file_ending.startswith(".")
    return True


@cache
def manifest() -> bytes:
    content = {
        "format": "swinfuse-model", "format_version": 1, "model": "Dataset1_A/a__b__c", "versions": {"torch": "2"},
        "licences": {}, "training": {}, "files": {"plans.json": {"sha256": "0" * 64, "bytes": 3}},
    }  # fmt: skip
    return json.dumps(content).encode()


def judge_manifest(content: bytes, path: Path) -> bool:
    try:
        read = parse_manifest(content, path)
    except InputError as error:
        return refused(path, error)
    assert all(re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]) for entry in read.files.values())
    return True


@cache
def record() -> bytes:
    return json.dumps({"format": "swinfuse-training-images", "format_version": 1, "orientations": {"LPS": 3}}).encode()


def judge_record(content: bytes, path: Path) -> bool:
    path.write_bytes(content)
    try:
        assert read_record(path)
    except InputError as error:
        return refused(path, error)
    return True


@cache
def model_zip() -> bytes:
    with TemporaryDirectory() as folder:
        export_model(write_whole_model(Path(folder, "results")), Path(folder, "m.zip"))
        return Path(folder, "m.zip").read_bytes()


def judge_model_zip(content: bytes, path: Path) -> bool:
    """The manifest's hashes guard everything but itself, zip's checksums guard that."""
    path.write_bytes(content)
    try:
        verify_zip(path)
    except InputError as error:
        return refused(path, error)
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(io.BytesIO(model_zip())) as sound:
        assert {name: ours.read(name) for name in ours.namelist()} == {n: sound.read(n) for n in sound.namelist()}
    return True
