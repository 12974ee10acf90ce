"""Files of every format that was ever written (tests/data/formats): read by today's code, or refused with the remedy.

A new format adds its file to the folder and one line to FILES.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import FORMAT_VERSION as ENCODER_VERSION
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture
from nnunetv2_swinfuse.architecture.transfer import transfer_encoder
from nnunetv2_swinfuse.inference import manifest, training_images
from nnunetv2_swinfuse.inference.plan_safety import check_plans
from pretraining.checkpoint import FORMAT_VERSION as CHECKPOINT_VERSION
from pretraining.checkpoint import load_checkpoint
from pretraining.preprocessed.collection import INDEX_VERSION, PreprocessedCollection
from pretraining.preprocessed.volume_file import VolumeMetadata, foreground_points, open_volume, read_crop, write_volume

FOLDER = Path(__file__).parents[1] / "data" / "formats"


def read_whole(path: Path) -> Any:
    encoder = load_pretrained(path)
    # Its stem has half the feature size; new networks are wider.
    assert encoder.network_settings == {"stem_features": encoder.settings.feature_size // 2}
    architecture = plans_architecture(encoder.strides, encoder.settings, **encoder.network_settings)
    network = build_network(architecture, 1, 3)
    # A changed default of the network would leave its decoder without a place.
    assert all("seg_layers" in name for name in transfer_encoder(network, encoder, decoder=True).fresh)
    return encoder.decoder_weights


def read_plans(path: Path) -> Any:
    plans = json.loads(path.read_text())
    check_plans(plans, path)
    network = build_network(plans["configurations"]["3d_fullres"]["architecture"], 1, 3)
    # Before plans named the width of the stem, it was half the feature size.
    assert network.stem.output_channels == (16 if path == newest("plans") else 3)
    return network


def read_index(path: Path) -> Any:
    collection = PreprocessedCollection.open(path)
    assert collection.patient(3) == "p1"
    return collection.split("train")


def read_volume(path: Path) -> Any:
    volume = open_volume(path)
    assert len(foreground_points(path, volume)) > 100
    crop = read_crop(path, volume, np.array([-2, 4, 4]), (8, 8, 8))
    assert np.isfinite(crop).all()
    return crop


def read_manifest(path: Path) -> Any:
    return manifest.parse_manifest(path.read_bytes(), path).files


# How a file is read, and what its refusal says; None where it is read.
FILES = {
    "encoder-1.pth": (load_pretrained, "format 1, .*older version.*Pretrain"),
    "encoder-2.pth": (load_pretrained, None),
    "encoder-2-whole.pth": (read_whole, None),
    "checkpoint-1.pth": (load_checkpoint, "format 1, of an older version.*Start again without --c"),
    "checkpoint-2.pth": (load_checkpoint, "format 2, of an older version.*Start again without --c"),
    "checkpoint-3.pth": (load_checkpoint, "format 3, of an older version.*Start again without --c"),
    "checkpoint-4.pth": (load_checkpoint, None),
    "plans-0.1.json": (read_plans, "max_tokens is of versions before 0.2.*train again, or predict with"),
    "plans-0.2.json": (read_plans, None),
    "plans-0.2-2.json": (read_plans, None),
    "index-1": (read_index, "version 1 of an older installation.*Preprocess again with --overwrite"),
    "index-2": (read_index, "version 2 of an older installation.*Preprocess again with --overwrite"),
    "index-3": (read_index, None),
    "volume-1.b2nd": (read_volume, "damaged, or of an older version; preprocess again with --overwrite"),
    "volume-2.b2nd": (read_volume, None),
    "volume-3.b2nd": (read_volume, None),
    "manifest-1.json": (read_manifest, None),
    "training_images-1.json": (training_images.read_record, None),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read_or_refused_with_the_remedy(name):
    read, refusal = FILES[name]
    if refusal is None:
        assert read(FOLDER / name) is not None
    else:
        with pytest.raises(ValueError, match=f"(?s){refusal}") as refused:
            read(FOLDER / name)
        # Plans are read by nnU-Net, which does not tell the network their path.
        assert str(FOLDER / name) in str(refused.value) or name.startswith("plans")


def test_every_file_of_the_folder_is_read():
    assert {path.name for path in FOLDER.iterdir()} == {*FILES, "README.md"}


def test_todays_formats_are_in_the_folder():
    today = {
        "encoder": ENCODER_VERSION,
        "checkpoint": CHECKPOINT_VERSION,
        "index": INDEX_VERSION,
        "manifest": manifest.FORMAT_VERSION,
        "training_images": training_images.FORMAT_VERSION,
    }
    stems = {re.sub(r"\.\w+$", "", name) for name in FILES}
    missing = [f"{kind}-{number}" for kind, number in today.items() if f"{kind}-{number}" not in stems]
    assert not missing, f"a format has changed: add {missing} to {FOLDER}, written by this version"


def newest(kind: str) -> Path:
    """The file of a format's highest version."""
    return max(FOLDER.glob(f"{kind}-*"), key=lambda path: [int(part) for part in re.findall(r"\d+", path.stem)])


def test_todays_volumes_have_the_metadata_of_the_newest_in_the_folder(tmp_path):
    path = tmp_path / "v.b2nd"
    write_volume(
        path, np.zeros((1, 4, 4, 4), np.float32), VolumeMetadata(np.zeros((1, 3)), 0.0), (1, 4, 4, 4), (1, 4, 4, 4)
    )
    assert set(open_volume(path).schunk.meta) == set(open_volume(newest("volume")).schunk.meta)


def test_todays_plans_have_the_entries_of_the_newest_in_the_folder():
    settings = EncoderSettings(6, (1,), (1,), window_size=2)
    architecture = plans_architecture([[1, 1, 1], [2, 2, 2], [2, 2, 2]], settings, kernel_sizes=[[3, 3, 3]] * 3)
    (block,) = json.loads(newest("plans").read_text())["configurations"].values()
    assert architecture.keys() == block["architecture"].keys()
    assert architecture["arch_kwargs"].keys() == block["architecture"]["arch_kwargs"].keys()
