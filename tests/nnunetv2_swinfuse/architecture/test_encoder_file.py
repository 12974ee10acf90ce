import pickle

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import (
    Encoder,
    EncoderFileError,
    load_encoder,
    save_atomically,
    save_encoder,
)

from .networks import HALVINGS, build, encoder_of


@pytest.fixture
def path(tmp_path, settings):
    path = tmp_path / "folder" / "encoder.pth"
    save_encoder(encoder_of(build(HALVINGS, settings)), path)
    return path


def test_round_trip_without_code_execution(path, settings):
    content = torch.load(path, weights_only=True)
    assert content["format"] == "swinfuse-encoder"
    encoder = load_encoder(path)
    assert encoder.settings == settings
    assert encoder.strides == tuple(tuple(stride) for stride in HALVINGS)
    expected = encoder_of(build(HALVINGS, settings)).weights
    assert encoder.weights.keys() == expected.keys()
    assert all(torch.equal(encoder.weights[name], expected[name]) for name in expected)
    assert len(encoder.sha256) == 64


def change(path, **changes):
    save_atomically({**torch.load(path, weights_only=True), **changes}, path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


def replace_by_pickle(path):
    path.write_bytes(pickle.dumps(print))


BAD = {
    "missing": (lambda path: path.unlink(), "no such encoder file.*swinfuse_pretrain"),
    "truncated": (truncate, "corrupted"),
    "text": (lambda path: path.write_text("hello"), "corrupted"),
    "pickle": (replace_by_pickle, "refused|corrupted"),
    "code": (lambda path: torch.save({"format": print}, path), "code execution.*refused"),
    "foreign": (lambda path: torch.save({"state_dict": {}}, path), "not a SwinFUSE encoder"),
    "list": (lambda path: torch.save([1], path), "holds a list"),
    "newer": (lambda path: change(path, format_version=99), "encoder format 99.*Upgrade"),
    "settings": (lambda path: change(path, settings={"size": 3}), "incompatible.*unknown encoder settings"),
    "decoder": (lambda path: change(path, network_weights={"decoder.x": torch.zeros(1)}), "tensors of no encoder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_a_remedy(path, case):
    spoil, words = BAD[case]
    spoil(path)
    with pytest.raises(EncoderFileError, match=f"(?s){words}") as caught:
        load_encoder(path)
    assert str(path) in str(caught.value)


def test_a_failed_write_leaves_the_old_file_and_no_litter(path):
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_atomically({"x": lambda: None}, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["encoder.pth"]


def test_a_layer_under_two_names_is_stored_once(settings, tmp_path):
    # Not contiguous: making it so would copy it for each name.
    weight = torch.randn(300, 200).T
    weights = {"encoder.conv": weight, "encoder.all_modules": weight}
    save_encoder(Encoder(weights, settings, ((1, 1, 1),)), tmp_path / "encoder.pth")
    assert (tmp_path / "encoder.pth").stat().st_size < 1.5 * 4 * weight.numel()
    assert all(torch.equal(read, weight) for read in load_encoder(tmp_path / "encoder.pth").weights.values())
