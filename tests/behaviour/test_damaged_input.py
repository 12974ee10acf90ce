"""Damaged files of every kind that comes from outside: a named error, or exactly what their bytes say.

SWINFUSE_FUZZ_EXAMPLES sets how many files each test damages (default 40).
"""

# ruff: noqa: PT017 - an error is one of the two right answers here
from __future__ import annotations

import gzip
import io
import json
import os
import re
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.volume import LARGEST_INTENSITY, VolumeError, VoxelVolume, read_volume
from nnunetv2_swinfuse.inference.export import export_model
from nnunetv2_swinfuse.inference.manifest import parse_manifest
from nnunetv2_swinfuse.inference.model_description import describe_model
from nnunetv2_swinfuse.inference.training_images import read_record
from nnunetv2_swinfuse.inference.verify import verify_zip
from nnunetv2_swinfuse.plain_loading import inspect_checkpoint, load_plain
from tests.nnunetv2_swinfuse.inference.synthetic_models import write_model, write_whole_model

EXAMPLES = int(os.environ.get("SWINFUSE_FUZZ_EXAMPLES", "40"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="SWINFUSE_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SPACING = (1.5, 2.0, 3.0)
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)

damages = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
        st.tuples(st.just("set"), st.floats(0, 1), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x30, 0x0A])),
        # Headers are a small part of a file and decide the most.
        st.tuples(st.just("set"), st.floats(0, 0.3), st.integers(0, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("insert"), st.floats(0, 1), st.integers(1, 40)),
        st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 40)),
    ),
    min_size=1,
    max_size=4,
)


def damage(content: bytes, how: list[tuple[str, float, int]]) -> bytes:
    data = bytearray(content)
    for kind, share, number in how:
        at = min(int(share * len(data)), max(0, len(data) - 1))
        if not data:
            break
        if kind == "flip":
            data[at] ^= 1 << number
        elif kind == "set":
            data[at] = number
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = bytes(range(number))
        else:
            del data[at : at + number]
    return bytes(data)


@cache
def encoded(ending: str, compress: bool) -> bytes:
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing(SPACING)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"swinfuse_fuzz_{os.getpid()}{ending}"
    sitk.WriteImage(image, str(path), compress)
    content = path.read_bytes()
    path.unlink()
    return content


def read_damaged(folder: Path, ending: str, content: bytes) -> VoxelVolume | None:
    """None where the file was refused by name."""
    # ITK reads a.nii where a.nii.gz lies beside it.
    path = folder / f"{ending[1:].replace('.', '_')}{ending}"
    path.write_bytes(content)
    try:
        return read_volume(path)
    except VolumeError as error:
        assert str(path) in str(error)
        assert error.reason
        assert error.remedy
        return None


@fuzz
@given(damages)
def test_compressed_nifti_is_refused_or_unchanged(tmp_path, how):
    volume = read_damaged(tmp_path, ".nii.gz", damage(encoded(".nii.gz", True), how))
    if volume is not None:
        np.testing.assert_array_equal(volume.voxels, VOXELS)
        np.testing.assert_allclose(volume.grid.spacing, SPACING)


@fuzz
@given(damages, st.booleans())
def test_plain_nifti_is_refused_or_what_its_bytes_say(tmp_path, how, zipped):
    content = damage(encoded(".nii", False), how)
    volume = read_damaged(tmp_path, ".nii.gz" if zipped else ".nii", gzip.compress(content, 1) if zipped else content)
    if volume is None:
        return
    assert np.isfinite(volume.voxels).all()
    assert np.abs(volume.voxels).max() <= LARGEST_INTENSITY
    if content[:352] == encoded(".nii", False)[:352]:
        # The header is sound: voxels are what lies behind it, damaged or not.
        expected = np.frombuffer(content[352:], "<i2").reshape(VOXELS.shape)
        np.testing.assert_array_equal(volume.voxels, expected)


@fuzz
@given(damages, st.sampled_from([(".mha", True), (".mha", False), (".nrrd", True), (".nrrd", False)]))
def test_metaimage_and_nrrd_are_refused_or_hold_as_many_voxels_as_they_say(tmp_path, how, form):
    ending, compress = form
    volume = read_damaged(tmp_path, ending, damage(encoded(ending, compress), how))
    if volume is None:
        return
    assert np.isfinite(volume.voxels).all()
    if compress and volume.voxels.shape == VOXELS.shape and volume.voxels.size:
        # zlib's checksum guards the voxels; nothing guards what the header says of their type and byte order.
        swapped = VOXELS.byteswap()
        kinds = (VOXELS, VOXELS.view("u2"), swapped, swapped.view("u2"))
        assert any(np.array_equal(volume.voxels, voxels.astype(np.float32)) for voxels in kinds)


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.manual_seed(0)
    weights = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3)}
    torch.save({"network_weights": weights, "logging": {"loss": [np.float64(1)]}, "trainer_name": "T"}, buffer)
    return buffer.getvalue()


@fuzz
@given(damages)
def test_checkpoints_are_refused_or_dictionaries(tmp_path, how):
    path = tmp_path / "a.pth"
    path.write_bytes(damage(checkpoint(), how))
    for read in (load_plain, lambda p: inspect_checkpoint(p.open("rb"), str(p))):
        try:
            content = read(path)
        except InputError as error:
            assert str(path) in str(error)
        else:
            assert content is None or isinstance(content, dict)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> bytes:
    root = tmp_path_factory.mktemp("exported")
    export_model(write_whole_model(root / "results"), root / "m.zip")
    return (root / "m.zip").read_bytes()


@fuzz
@given(how=damages)
def test_model_zips_are_refused_or_unchanged(exported, tmp_path, how):
    path = tmp_path / "m.zip"
    path.write_bytes(damage(exported, how))
    try:
        verify_zip(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        with zipfile.ZipFile(path) as ours, zipfile.ZipFile(io.BytesIO(exported)) as sound:
            assert {n: ours.read(n) for n in ours.namelist()} == {n: sound.read(n) for n in sound.namelist()}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["CT", ".nii.gz"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


def replaced(content, path, value):
    """The JSON with one part, chosen by numbers, replaced."""
    if not path or not isinstance(content, (dict, list)) or not content:
        return value
    keys = list(content) if isinstance(content, dict) else range(len(content))
    key = list(keys)[path[0] % len(keys)]
    copy = content.copy()
    copy[key] = replaced(content[key], path[1:], value)
    return copy


@fuzz
@given(
    name=st.sampled_from(["plans", "dataset", "dataset_fingerprint", "swinfuse_training_images"]),
    path=st.lists(st.integers(0, 9), max_size=5),
    value=JSON,
)
def test_models_whose_json_says_something_else_are_described_or_refused(tmp_path_factory, name, path, value):
    folder = write_model(tmp_path_factory.mktemp("model") / "m")
    file = folder / f"{name}.json"
    file.write_text(json.dumps(replaced(json.loads(file.read_text()), path, value)))
    try:
        described = describe_model(folder)
    except InputError as error:
        assert str(folder) in str(error)
    else:
        assert described.channels
        assert np.isfinite(described.extents).all()
        assert described.file_ending.startswith(".")


@fuzz
@given(damages)
def test_records_and_manifests_are_read_or_refused(tmp_path, how):
    manifest = {
        "format": "swinfuse-model", "format_version": 1, "model": "Dataset1_A/a__b__c", "versions": {"torch": "2"},
        "licences": {}, "training": {}, "files": {"plans.json": {"sha256": "0" * 64, "bytes": 3}},
    }  # fmt: skip
    record = {"format": "swinfuse-training-images", "format_version": 1, "orientations": {"LPS": 3}}
    try:
        parsed = parse_manifest(damage(json.dumps(manifest).encode(), how), "m")
        assert all(re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]) for entry in parsed.files.values())
    except InputError:
        pass
    path = tmp_path / "r.json"
    path.write_bytes(damage(json.dumps(record).encode(), how))
    try:
        assert read_record(path)
    except InputError as error:
        assert str(path) in str(error)
