import json

import pytest
import torch

from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from nnunetv2_swinfuse.training.fold_start import RECORD, record_start, weights_digest

PROCESSING = {"spacing": [1.0, 1.0, 1.0], "patch_size": [64, 64, 64]}


def block(sha256="a" * 64, feature_size=12, **provenance):
    return {
        "architecture": {"arch_kwargs": {"feature_size": feature_size}},
        "swinfuse": {"encoder_sha256": sha256, "encoder_source": f"/runs/{sha256[0]}/encoder.pth", **provenance},
    }


def test_folds_that_start_alike_all_start(tmp_path):
    for fold in (0, 1, "all", 0):
        record_start(tmp_path, fold, block(), PROCESSING)
    assert len(list(tmp_path.glob(f"fold_*/{RECORD}"))) == 3
    assert json.loads((tmp_path / "fold_1" / RECORD).read_text())["encoder_sha256"] == "a" * 64


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            block("b" * 64),
            r"encoder_sha256 is aaa.*in that fold, bbb.*in this one.*export SWINFUSE_CHECKPOINT=/runs/a/encoder.pth",
        ),
        (block(training={"initial_lr": 1}), "training is None in that fold"),
        (block(pretrained_weights="c" * 64), "pretrained_weights is None in that fold"),
        (block(feature_size=24), "the network has different sizes"),
    ],
)
def test_a_fold_that_starts_otherwise_is_refused_and_leaves_nothing(tmp_path, other, message):
    record_start(tmp_path, 0, block(), PROCESSING)
    with pytest.raises(EncoderChoiceError, match=message) as error:
        record_start(tmp_path, 1, other, PROCESSING)
    assert f"delete {tmp_path / 'fold_0'}" in str(error.value)
    assert not (tmp_path / "fold_1" / RECORD).exists()


def test_a_fold_with_other_plans_is_refused(tmp_path):
    record_start(tmp_path, 0, block(), PROCESSING)
    message = r"spacing was \[1.0, 1.0, 1.0\], is \[4, 2, 2\].*use the same plans, or give the new ones a name"
    with pytest.raises(EncoderChoiceError, match=message):
        record_start(tmp_path, 1, block(), {**PROCESSING, "spacing": [4, 2, 2]})
    assert not (tmp_path / "fold_1" / RECORD).exists()


def test_a_record_of_an_earlier_version_says_nothing_of_the_plans(tmp_path):
    record_start(tmp_path, 0, block(), PROCESSING)
    path = tmp_path / "fold_0" / RECORD
    record = json.loads(path.read_text())
    del record["processing"]
    path.write_text(json.dumps(record))
    record_start(tmp_path, 1, block(), {**PROCESSING, "spacing": [4, 2, 2]})


def test_a_refused_fold_keeps_its_older_record(tmp_path):
    for fold in (0, 1):
        record_start(tmp_path, fold, block(), PROCESSING)
    before = (tmp_path / "fold_1" / RECORD).read_text()
    with pytest.raises(EncoderChoiceError):
        record_start(tmp_path, 1, block("b" * 64), PROCESSING)
    assert (tmp_path / "fold_1" / RECORD).read_text() == before


def test_the_only_fold_may_start_anew_from_something_else(tmp_path):
    record_start(tmp_path, 0, block(), PROCESSING)
    record_start(tmp_path, 0, block("b" * 64), PROCESSING)
    record_start(tmp_path, 1, block("b" * 64), PROCESSING)


def test_a_damaged_record_is_named(tmp_path):
    record_start(tmp_path, 0, block(), PROCESSING)
    (tmp_path / "fold_0" / RECORD).write_text("{")
    with pytest.raises(EncoderChoiceError, match=r"fold_0/swinfuse.json: damaged"):
        record_start(tmp_path, 1, block(), PROCESSING)


def test_the_digest_sees_every_weight_but_the_heads():
    network = torch.nn.Module()
    network.body = torch.nn.Linear(2, 2)
    network.decoder = torch.nn.Module()
    network.decoder.seg_layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    before = weights_digest(network)
    with torch.no_grad():
        network.decoder.seg_layers[0].weight += 1
        assert weights_digest(network) == before
        network.body.bias += 1
        assert weights_digest(network) != before
