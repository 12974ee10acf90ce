"""Files of pretraining (checkpoint, encoder, volume, index): sound ones, and what may come of damaged ones."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import EncoderFileError, save_encoder
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.errors import InputError
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
from tests.fuzzing.reader import refused
from tests.nnunetv2_swinfuse.architecture.networks import HALVINGS, build, encoder_of
from tests.pretraining.synthetic import tiny, write_index


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
    assert not read.padding_shares((8, 8, 8)).any()
    return True
