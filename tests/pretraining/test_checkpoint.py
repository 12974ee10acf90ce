import errno
import os
import pickle
from dataclasses import replace

import pytest
import torch

from nnunetv2_swinfuse.architecture.weight_decay import weight_decay_groups
from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import FORMAT_VERSION, TrainingState, load_checkpoint, save_checkpoint
from pretraining.configuration import BEFORE
from pretraining.loop import Training
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
        {"single_image": torch.tensor([0.5, 0.01])},
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
    assert loaded.averages.keys() == state.averages.keys()
    assert torch.equal(loaded.averages["single_image"], state.averages["single_image"])
    assert all(torch.equal(loaded.network_weights[k], v) for k, v in state.network_weights.items())
    assert loaded.optimizer["state"].keys() == state.optimizer["state"].keys()


def test_a_checkpoint_of_before_a_setting_keeps_what_its_run_did(tmp_path, state):
    path = tmp_path / "checkpoint.pth"
    save_checkpoint(state, path)
    settings = torch.load(path, weights_only=True)["configuration"]
    change(path, configuration={name: value for name, value in settings.items() if name not in BEFORE})
    assert load_checkpoint(path).configuration == tiny(**BEFORE)


def test_a_network_pretrained_as_a_whole_is_resumed_with_its_width(tmp_path, state):
    # As begun by a version whose stem had half the feature size.
    configuration = replace(state.configuration, inpainting_head="network")
    model = PretrainingModel(configuration, {"stem_features": 3})
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.1)).state_dict()
    begun = replace(state, configuration=configuration, network_weights=model.state_dict(), optimizer=optimizer)
    save_checkpoint(begun, tmp_path / "checkpoint.pth")
    resumed = Training.start(configuration, torch.device("cpu"), load_checkpoint(tmp_path / "checkpoint.pth")).model
    assert resumed.inpainting_head.network.stem.output_channels == 3
    assert all(torch.equal(tensor, begun.network_weights[name]) for name, tensor in resumed.state_dict().items())


def change(path, **changes):
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


def change_weights(path, change):
    weights = torch.load(path, weights_only=True)["network_weights"]
    torch.save({**torch.load(path, weights_only=True), "network_weights": change(weights)}, path)


def flip_bit(path):
    """In a weight: the padding between the records of the file has no checksum."""
    weight = load_checkpoint(path).network_weights["patch_embed.proj.weight"]
    whole = bytearray(path.read_bytes())
    whole[whole.index(weight.numpy().tobytes())] ^= 1
    path.write_bytes(whole)


BAD = {
    "missing": (lambda path: path.unlink(), "no checkpoint to resume from"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:500]), "corrupted.*Restore it from a copy"),
    "flipped bit": (flip_bit, "corrupted.*checksum of .* is wrong.*Restore it from a copy"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(print)), "needs code execution .* or is corrupted.*Restore"),
    "foreign": (lambda path: torch.save({"a": 1}, path), "not a checkpoint of swinfuse_pretrain"),
    "list": (lambda path: torch.save([1], path), "not a checkpoint of swinfuse_pretrain .found 'list'"),
    "newer": (lambda path: change(path, format_version=9), "checkpoint format 9.*newer wheel"),
    "older": (lambda path: change(path, format_version=2), "checkpoint format 2.*without --c, with --overwrite"),
    "no version": (lambda path: change(path, format_version=None), "checkpoint format None"),
    "tensor version": (lambda path: change(path, format_version=torch.zeros(3)), "checkpoint format tensor"),
    "no step": (
        lambda path: torch.save({"format": "swinfuse-pretraining", "format_version": FORMAT_VERSION}, path),
        "damaged checkpoint .KeyError: 'step'.*Restore it from a copy",
    ),
    "spacing": (lambda path: change(path, spacing=None), "damaged checkpoint .TypeError"),
    "depths": (lambda path: change(path, configuration={"depths": 3}), "damaged checkpoint"),
    "weights": (lambda path: change(path, network_weights=[1]), "damaged checkpoint .AttributeError"),
    "NaN": (
        lambda path: change_weights(path, lambda w: {**w, "patch_embed.proj.bias": torch.full((12,), float("nan"))}),
        "patch_embed.proj.bias holds values that are not finite",
    ),
    "fewer weights": (
        lambda path: change_weights(path, lambda w: {n: t for n, t in w.items() if "proj.bias" not in n}),
        "tensors are not those of its configuration, such as encoder",
    ),
    "shape": (
        lambda path: change_weights(path, lambda w: {**w, "patch_embed.proj.bias": torch.zeros(3)}),
        "1 tensors are not those of its configuration, such as patch_embed.proj.bias",
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

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left.*GiB are free.*--c"):
        save_checkpoint(state, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]
