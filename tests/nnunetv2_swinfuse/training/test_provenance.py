import dataclasses
import json

import pytest

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.training.provenance import KEYS, REQUESTS, Provenance

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
SETTINGS = EncoderSettings(feature_size=12, depths=(1, 1), num_heads=(3, 3), window_size=3)
# As version 0.1 writes them, read from plans.json.
WITH_ENCODER = """{"plugin": "0.1.0", "pretrained": true, "encoder": "/results/encoder.pth", "encoder_sha256": "ab",
    "encoder_source": "/runs/1/encoder.pth", "collection": {"name": "SynthRAD", "hash": "cd"}, "pretrained_stages": 2,
    "training": {"initial_lr": 0.0001, "warmup_epochs": null}, "planned": {"gpu_memory_target_in_gb": 8}}"""
FROM_MONAI = """{"plugin": "0.1.0", "pretrained": true, "encoder": "/swin.pt", "encoder_sha256": "ab",
    "encoder_source": null, "collection": {"name": "unknown"}, "pretrained_stages": 2, "training": {}}"""
FROM_RANDOM = '{"plugin": "0.1.0", "pretrained": false, "sizes_from": "/results/encoder.pth", "training": {}}'
FROM_WEIGHTS = (
    '{"plugin": "0.1.0", "pretrained": true, "pretrained_stages": 2, "training": {}, "pretrained_weights": "ef"}'
)
REQUESTED = '{"encoder": "/mine.pth", "training": {"initial_lr": 0.001}}'


def encoder(source="/runs/2/encoder.pth"):
    return Encoder(
        {}, SETTINGS, tuple(map(tuple, STRIDES)), collection={"name": "A"}, source=source, path="/e.pth", sha256="12"
    )


def architecture():
    return plans_architecture(STRIDES, SETTINGS)


@pytest.mark.parametrize("text", [WITH_ENCODER, FROM_MONAI, FROM_RANDOM, FROM_WEIGHTS, REQUESTED, "{}"])
def test_blocks_on_disk_are_read_and_written_unchanged(text):
    block = json.loads(text)
    written = Provenance.from_dict(block).to_dict()
    assert json.dumps(written) == json.dumps(block)


def test_the_keys_on_disk_do_not_change():
    assert {
        "plugin", "pretrained", "sizes_from", "encoder", "encoder_sha256", "encoder_source", "collection",
        "pretrained_stages", "pretrained_decoder", "training", "planned", "pretrained_weights",
    } == KEYS  # fmt: skip
    assert REQUESTS < KEYS


def test_unknown_keys_are_named():
    with pytest.raises(ValueError, match=r"unknown keys \['encoders'\] in 'swinfuse'; known are \['collection', "):
        Provenance.from_dict({"encoders": "x", "plugin": "0.1.0"})


def test_it_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Provenance().plugin = "0.1.0"


@pytest.mark.parametrize("source", ["/runs/2/encoder.pth", None])
def test_an_encoder_is_recorded_with_its_origin(source):
    before = Provenance(plugin="0.1.0", pretrained=True, training={"initial_lr": 1e-4})
    assert before.with_encoder(encoder(source), architecture()).to_dict() == {
        **before.to_dict(),
        "encoder": "/e.pth",
        "encoder_sha256": "12",
        "encoder_source": source,
        "collection": {"name": "A"},
        "pretrained_stages": 2,
    }
    assert before == Provenance(plugin="0.1.0", pretrained=True, training={"initial_lr": 1e-4})


def test_loaded_weights_take_the_place_of_the_encoder():
    loaded = Provenance.from_dict(json.loads(FROM_MONAI)).with_loaded_weights("ef")
    assert loaded == Provenance.from_dict(json.loads(FROM_WEIGHTS))
    assert loaded.with_encoder(encoder(), architecture()).pretrained_weights is None


@pytest.mark.parametrize(("source", "kept"), [("/runs/2/encoder.pth", "/runs/2/encoder.pth"), (None, "/e.pth")])
def test_further_folds_use_the_file_that_later_runs_do_not_replace(source, kept):
    assert Provenance().with_encoder(encoder(source), architecture()).kept_encoder == kept
    assert Provenance().kept_encoder is None
