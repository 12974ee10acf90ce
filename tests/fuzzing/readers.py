"""Everything of this project that reads files: a sound file for each, and what may come of a damaged one.

A reader either refuses a file with a named error (`judge` returns False) or gives what the file holds (True). Anything
else is a bug: another exception, or values that differ where the format has checksums. Where it has none, as in an
uncompressed NIfTI file, "what the file holds" is what its damaged bytes say.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import EncoderFileError, save_encoder
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.nifti import check_nifti
from nnunetv2_swinfuse.imaging.volume import LARGEST_INTENSITY, VolumeError, VoxelVolume, read_volume
from nnunetv2_swinfuse.inference.export import export_model
from nnunetv2_swinfuse.inference.loading import read_json
from nnunetv2_swinfuse.inference.manifest import parse_manifest
from nnunetv2_swinfuse.inference.model_description import describe_model
from nnunetv2_swinfuse.inference.plan_safety import check_plans
from nnunetv2_swinfuse.inference.training_images import read_record
from nnunetv2_swinfuse.inference.verify import verify_zip
from nnunetv2_swinfuse.plain_loading import inspect_checkpoint, load_plain
from pretraining.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.model import PretrainingModel
from pretraining.preprocessed.collection import INDEX, TABLE, PreprocessedCollection
from pretraining.preprocessed.volume_file import (
    LARGEST_NORMALISED,
    VolumeMetadata,
    foreground_points,
    open_volume,
    read_crop,
    write_volume,
)
from tests.nnunetv2_swinfuse.architecture.networks import HALVINGS, build, encoder_of
from tests.nnunetv2_swinfuse.inference.synthetic_models import write_model, write_whole_model
from tests.pretraining.synthetic import tiny, write_index

SPACING = (1.5, 2.0, 3.0)
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)


@dataclass(frozen=True)
class Reader:
    """A format and what reads it.

    Attributes:
        name: for the table.
        file: what the damaged file is called.
        sound: returns the content of a sound file.
        judge: writes content to a path, reads it; True when it was read, False when it was refused by name.
        text: whether the content is JSON.
    """

    name: str
    file: str
    sound: Callable[[], bytes]
    judge: Callable[[bytes, Path], bool]
    text: bool = False


def refused(path: Path, error: Exception) -> bool:
    """The verdict on a refusal; the error must name the file."""
    if str(path) not in str(error):
        raise AssertionError(f"unnamed: {error}") from error
    return False


@cache
def image(ending: str, compress: bool) -> bytes:
    """The sound volume."""
    volume = sitk.GetImageFromArray(VOXELS)
    volume.SetSpacing(SPACING)
    with TemporaryDirectory() as folder:
        sitk.WriteImage(volume, f"{folder}/a{ending}", compress)
        return Path(folder, f"a{ending}").read_bytes()


def read_image(content: bytes, path: Path) -> VoxelVolume | None:
    """None where the file was refused by name; what pretraining checks of raw files is called as well."""
    path.write_bytes(content)
    try:
        check_nifti(path)
    except InputError as error:
        refused(path, error)
    try:
        volume = read_volume(path)
    except VolumeError as error:
        refused(path, error)
        return None
    assert np.isfinite(volume.voxels).all()
    assert np.abs(volume.voxels).max() <= LARGEST_INTENSITY
    return volume


def judge_compressed_nifti(content: bytes, path: Path) -> bool:
    """gzip's checksum guards header and voxels."""
    volume = read_image(content, path)
    if volume is not None:
        np.testing.assert_array_equal(volume.voxels, VOXELS)
        np.testing.assert_allclose(volume.grid.spacing, SPACING)
    return volume is not None


def judge_plain_nifti(content: bytes, path: Path) -> bool:
    """Under a sound header the voxels are what follows it."""
    volume = read_image(content, path)
    if volume is not None and content[:352] == image(".nii", False)[:352]:
        np.testing.assert_array_equal(volume.voxels, np.frombuffer(content[352:], "<i2").reshape(VOXELS.shape))
    return volume is not None


def judge_damaged_then_compressed(content: bytes, path: Path) -> bool:
    """A sound gzip stream of a damaged NIfTI file."""
    volume = read_image(gzip.compress(content, 1), path)
    if volume is not None and content[:352] == image(".nii", False)[:352]:
        np.testing.assert_array_equal(volume.voxels, np.frombuffer(content[352:], "<i2").reshape(VOXELS.shape))
    return volume is not None


def judge_compressed_text_header(content: bytes, path: Path) -> bool:
    """zlib's checksum guards the voxels; nothing guards what the header says of their type and byte order."""
    volume = read_image(content, path)
    if volume is not None and volume.voxels.shape == VOXELS.shape:
        swapped = VOXELS.byteswap()
        kinds = (VOXELS, VOXELS.view("u2"), swapped, swapped.view("u2"))
        assert any(np.array_equal(volume.voxels, voxels.astype(np.float32)) for voxels in kinds)
    return volume is not None


def judge_plain_text_header(content: bytes, path: Path) -> bool:
    return read_image(content, path) is not None


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
def training_state() -> bytes:
    """A checkpoint of swinfuse_pretrain."""
    torch.manual_seed(0)
    model = PretrainingModel(tiny())
    optimizer = torch.optim.AdamW(model.parameters())
    state = TrainingState(
        3,
        model.state_dict(),
        optimizer.state_dict(),
        {"single_image": torch.tensor([0.5, 0.01])},
        tiny(),
        {"name": "X", "hash": "h"},
        (1, 1, 1),
    )
    with TemporaryDirectory() as folder:
        save_checkpoint(state, Path(folder, "a.pth"))
        return Path(folder, "a.pth").read_bytes()


def judge_training_state(content: bytes, path: Path) -> bool:
    path.write_bytes(content)
    try:
        state = load_checkpoint(path)
    except InputError as error:
        return refused(path, error)
    assert state.step == 3
    assert all(tensor.isfinite().all() for tensor in state.network_weights.values())
    return True


@cache
def encoder() -> bytes:
    settings = EncoderSettings(6, (1,), (1,), window_size=2, domain_invariance={"layers": 1, "mlp_ratio": 1.0})
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_encoder(encoder_of(build(HALVINGS[:3], settings)), Path(folder, "encoder.pth"))
        return Path(folder, "encoder.pth").read_bytes()


def judge_encoder(content: bytes, path: Path) -> bool:
    """The archive's checksums and the file's own digest guard the weights."""
    path.write_bytes(content)
    try:
        read = load_pretrained(path)
    except EncoderFileError as error:
        return refused(path, error)
    sound = torch.load(io.BytesIO(encoder()), weights_only=True)["network_weights"]
    assert read.weights.keys() == sound.keys()
    assert all(torch.equal(tensor, sound[name]) for name, tensor in read.weights.items())
    return True


@cache
def volume_file() -> bytes:
    """A preprocessed volume of several chunks."""
    voxels = np.round(np.random.default_rng(0).normal(size=(1, 12, 14, 16)), 1).astype(np.float32)
    metadata = VolumeMetadata(np.array([[1, 2, 3], [4, 5, 6]], np.int16), -1.0, (1.0, 1.0, 1.0), origin="origin")
    with TemporaryDirectory() as folder:
        write_volume(Path(folder, "a.b2nd"), voxels, metadata, (1, 8, 8, 8), (1, 4, 8, 8))
        return Path(folder, "a.b2nd").read_bytes()


def judge_volume_file(content: bytes, path: Path) -> bool:
    """blosc2 has no checksums: what is read is of the right form and size of a normalised volume."""
    path.write_bytes(content)
    try:
        volume = open_volume(path)
        points = foreground_points(path, volume)
        crop = read_crop(path, volume, np.array([-1, 2, 3]), (6, 7, 8))
    except InputError as error:
        return refused(path, error)
    assert points.shape[1] == 3
    assert (crop.shape, crop.dtype) == ((1, 6, 7, 8), np.float32)
    assert np.abs(crop).max() < LARGEST_NORMALISED
    return True


@cache
def index(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        patients = tuple(
            Patient(p, tuple(Volume(d, d, root / p / f"{d}.b2nd") for d in ("CT", "MR")), True) for p in "abc"
        )
        split = {"a": "train", "b": "train", "c": "validation"}
        write_index(root, Collection("A", "synthetic", root, patients), split, (20, 24, 22))
        return (root / name).read_bytes()


def judge_index(content: bytes, path: Path) -> bool:
    """`index.npz` has checksums; of `index.json` what it says is taken if it can be an index at all."""
    for name in (INDEX, TABLE):
        (path.parent / name).write_bytes(index(name))
    path.write_bytes(content)
    try:
        read = PreprocessedCollection.open(path.parent)
    except InputError as error:
        return refused(path, error)
    assert [read.patient(number) for number in range(6)] == ["a", "a", "b", "b", "c", "c"]
    assert read.split("train").pairs.tolist() == [[0, 1], [2, 3]]
    assert len(read.spacing) == len(read.crop_size) == 3
    assert read.smaller_than((8, 8, 8)) == 0
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


READERS = {
    reader.name: reader
    for reader in (
        Reader("NIfTI, compressed", "a.nii.gz", lambda: image(".nii.gz", True), judge_compressed_nifti),
        Reader("NIfTI", "a.nii", lambda: image(".nii", False), judge_plain_nifti),
        Reader(
            "NIfTI, damaged, then compressed", "a.nii.gz", lambda: image(".nii", False), judge_damaged_then_compressed
        ),
        Reader("MetaImage, compressed", "a.mha", lambda: image(".mha", True), judge_compressed_text_header),
        Reader("MetaImage", "a.mha", lambda: image(".mha", False), judge_plain_text_header),
        Reader("NRRD, compressed", "a.nrrd", lambda: image(".nrrd", True), judge_compressed_text_header),
        Reader("NRRD", "a.nrrd", lambda: image(".nrrd", False), judge_plain_text_header),
        Reader("checkpoint of a model", "a.pth", model_checkpoint, judge_model_checkpoint),
        Reader("checkpoint of pretraining", "a.pth", training_state, judge_training_state),
        Reader("encoder", "encoder.pth", encoder, judge_encoder),
        Reader("preprocessed volume (blosc2)", "a.b2nd", volume_file, judge_volume_file),
        Reader("index.json", INDEX, lambda: index(INDEX), judge_index, text=True),
        Reader("index.npz", TABLE, lambda: index(TABLE), judge_index),
        *(
            Reader(name, name, lambda name=name: model_json(name), judge_model_json, text=True)  # type: ignore[misc]
            for name in ("plans.json", "dataset.json", "dataset_fingerprint.json")
        ),
        Reader("manifest of a model", "swinfuse_manifest.json", manifest, judge_manifest, text=True),
        Reader("record of orientations", "swinfuse_training_images.json", record, judge_record, text=True),
        Reader("model zip", "m.zip", model_zip, judge_model_zip),
    )
}
