import errno
import pickle

import pytest
import torch

from nnunetv2_swinfuse.architecture import encoder_file
from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from pretraining.model import PretrainingModel

from .synthetic import tiny


@pytest.fixture
def state():
    model = PretrainingModel(tiny())
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return TrainingState(
        3,
        model.state_dict(),
        optimizer.state_dict(),
        torch.tensor(0.5),
        tiny(),
        {"name": "X", "hash": "h"},
        (2.0, 1, 1),
    )


def test_round_trip_without_code_execution(tmp_path, state):
    path = tmp_path / "checkpoint.pth"
    save_checkpoint(state, path)
    assert torch.load(path, weights_only=True)["step"] == 3
    loaded = load_checkpoint(path)
    assert loaded.configuration == state.configuration
    assert torch.equal(loaded.bandwidth, state.bandwidth)
    assert all(torch.equal(loaded.network_weights[k], v) for k, v in state.network_weights.items())
    assert loaded.optimizer["state"].keys() == state.optimizer["state"].keys()


BAD = {
    "missing": (lambda path: path.unlink(), "no checkpoint to resume from"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:500]), "corrupted checkpoint"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(print)), "corrupted checkpoint"),
    "foreign": (lambda path: torch.save({"a": 1}, path), "not a checkpoint of swinfuse_pretrain"),
    "newer": (
        lambda path: torch.save({**torch.load(path, weights_only=True), "format_version": 9}, path),
        "checkpoint format 9.*Upgrade",
    ),
    "older": (
        lambda path: torch.save({**torch.load(path, weights_only=True), "format_version": 1}, path),
        "checkpoint format 1.*without --c.*--init_from",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_are_named_with_a_remedy(tmp_path, state, case):
    path = tmp_path / "checkpoint.pth"
    save_checkpoint(state, path)
    spoil, words = BAD[case]
    spoil(path)
    with pytest.raises(InputError, match=words) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(tmp_path, state, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    save_checkpoint(state, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encoder_file.os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left.*GiB are free.*--c"):
        save_checkpoint(state, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]
