"""Whatever a file holds, it is taken as it was written or refused with EncoderFileError: ours and MONAI's.

`DAMAGED_FILES=20000 pytest tests/nnunetv2_swinfuse/architecture/test_damaged_files.py` tries that many of each kind.
"""

import os
import random
import re
from itertools import product

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import EncoderFileError, save_encoder, weights_digest
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.architecture.transfer import TransferError, transfer_encoder
from tests.nnunetv2_swinfuse.architecture.networks import HALVINGS, build, encoder_of

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("DAMAGED_FILES", 100))
MONAI_NAMES = (
    ("encoder.stages.0.", "layers1.0."),
    ("attention.relative_position_bias", "attn.relative_position_bias_table"),
    ("attention.", "attn."),
    ("mlp.expand", "mlp.linear1"),
    ("mlp.reduce", "mlp.linear2"),
    ("merging.", "downsample."),
)
SMALL = {"feature_size": 6, "depths": (1,), "num_heads": (1,), "window_size": 2}
MODULE = {"layers": 1, "mlp_ratio": 1.0}
JUNK = (
    None, True, 0, -1, 7, 10**30, 0.5, float("nan"), "", "abc", b"abc", [], [None], [0], [[1, 1, 1]], [[2, 2, 2]] * 9,
    {}, {"a": 1}, {0: {}}, (), torch.zeros(3), torch.tensor(2),
)  # fmt: skip
JUNK_TENSORS = (
    torch.tensor(1.0), torch.empty(0), torch.zeros(3), torch.zeros(2, 0), torch.zeros(1, 1, 1, 1, 1),
    torch.zeros(8, 27), torch.full((2, 2), float("nan")), torch.zeros(2, dtype=torch.int8),
    torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse(),
    torch.zeros(2, device="meta"), torch.zeros(1).expand(2**40), torch.zeros(2, 2, dtype=torch.float64),
)  # fmt: skip


def our_content(folder):
    settings = EncoderSettings(**{**SMALL, "feature_size": 6}, domain_invariance=MODULE)
    encoder = encoder_of(build(HALVINGS[:3], settings))
    save_encoder(encoder, folder / "ours.pth")
    return torch.load(folder / "ours.pth", weights_only=True)


def monai_content(prefix=""):
    encoder = encoder_of(build(HALVINGS[:3], EncoderSettings(**SMALL, domain_invariance=None)))
    state = {}
    for name, tensor in encoder.weights.items():
        for ours, theirs in MONAI_NAMES:
            name = name.replace(ours, theirs)
        state[prefix + name] = tensor
    return {"state_dict": state, "epoch": 3}


@pytest.fixture(params=["ours", "monai", "ours, before PyTorch 1.6"])
def file(request, tmp_path):
    path = tmp_path / "file.pth"
    content = monai_content() if request.param == "monai" else our_content(tmp_path)
    torch.save(content, path, _use_new_zipfile_serialization="1.6" not in request.param)
    return path


def accepted_weights(path, expected=None):
    """Whether a file is taken; another error than EncoderFileError fails the test, and so do other weights."""
    try:
        encoder = load_pretrained(path)
    except EncoderFileError as error:
        assert str(path) in str(error)  # noqa: PT017 - a file may also be taken
        return False
    assert all(tensor.isfinite().all() for tensor in encoder.weights.values())
    if expected is not None:
        assert encoder.weights.keys() == expected.weights.keys()
        assert all(torch.equal(tensor, expected.weights[name]) for name, tensor in encoder.weights.items())
    return True


def content_taken(content, path):
    torch.save(content, path)
    return accepted_weights(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_truncated_files_are_refused(file):
    whole = file.read_bytes()
    assert accepted_weights(file)
    for length in range(0, len(whole), max(len(whole) // CASES, 1)):
        file.write_bytes(whole[:length])
        assert not accepted_weights(file), length


@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_never_becomes_another_weight(file):
    whole = file.read_bytes()
    expected = load_pretrained(file)
    generator = random.Random(0)
    refused = 0
    for _ in range(CASES):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        refused += not accepted_weights(file, expected)
    # The rest hit padding, or times and the like in the zip's headers.
    assert refused > 0.2 * CASES


def test_a_record_that_is_marked_as_a_folder_is_refused(tmp_path):
    # PyTorch does not read such a record: the weights were whatever the memory held.
    path = tmp_path / "monai.pt"
    torch.save(monai_content(), path)
    whole = path.read_bytes()
    places = [match.start() for match in re.finditer(rb"PK\x01\x02", whole)]
    assert len(places) > 10
    for place in places:
        damaged = bytearray(whole)
        damaged[place + 38] ^= 0x10
        path.write_bytes(damaged)
        assert not accepted_weights(path)


@pytest.mark.filterwarnings("ignore")
def test_garbage_within_a_file_is_refused(file):
    whole = file.read_bytes()
    expected = load_pretrained(file)
    generator = random.Random(1)
    for _ in range(CASES):
        start = generator.randrange(len(whole))
        length = generator.randrange(1, 200)
        file.write_bytes(whole[:start] + generator.randbytes(length) + whole[start + length :])
        accepted_weights(file, expected)
        file.write_bytes(whole[:start] + whole[start + length :])
        accepted_weights(file, expected)


def with_digest(content):
    """As forged by someone who knows the format; without a digest where there can be none."""
    try:
        return {**content, "weights_digest": weights_digest(content)}
    except Exception:
        return content


def mutations(content, weights, junk):
    """Every value replaced by every kind of junk, or left out."""
    for key, value in product(content, junk):
        yield {**content, key: value}
    for key in content:
        yield {name: value for name, value in content.items() if name != key}
    for name, tensor in product(content[weights], (*JUNK_TENSORS, *JUNK)):
        yield {**content, weights: {**content[weights], name: tensor}}
    for name in content[weights]:
        yield {**content, weights: {other: tensor for other, tensor in content[weights].items() if other != name}}
    for key in (
        *JUNK[:11],
        (),
        "encoder.stages.7.blocks.0.norm1.weight",
        "layers1.0.blocks.x.norm1.weight",
        "layers0.0.a",
    ):
        yield {**content, weights: {**content[weights], key: torch.zeros(2)}}


def some(cases):
    """About as many as the other tests try, evenly drawn."""
    cases = list(cases)
    return random.Random(2).sample(cases, min(2 * CASES, len(cases)))


def loaded_or_refused(cases, path, network=None):
    refused = 0
    for content in cases:
        if content_taken(content, path):
            encoder = load_pretrained(path)
            try:
                report = transfer_encoder(network or build(HALVINGS[:3], encoder.settings), encoder)
                assert report.used_share == 1
            except TransferError as error:
                assert str(path) in str(error)  # noqa: PT017 - both outcomes are fine, other errors are not
        else:
            refused += 1
    return refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("forged", [False, True])
def test_junk_in_our_files(tmp_path, forged):
    content = our_content(tmp_path)
    settings = [
        {**content, "settings": {**content["settings"], key: value}}
        for key, value in product(content["settings"], JUNK)
    ]
    cases = some([*mutations(content, "network_weights", JUNK), *settings])
    refused = loaded_or_refused(map(with_digest, cases) if forged else cases, tmp_path / "junk.pth")
    assert refused > 0.8 * len(cases)


@pytest.mark.filterwarnings("ignore")
def test_junk_in_monai_files(tmp_path):
    cases = some(mutations(monai_content("swinViT."), "state_dict", JUNK))
    refused = loaded_or_refused(cases, tmp_path / "junk.pt")
    assert refused > 0.5 * len(cases)


@pytest.mark.parametrize("content", [1, "abc", [1], torch.zeros(2), None, {}, {1: 2}, {"format": torch.zeros(2)}])
def test_files_of_something_else(tmp_path, content):
    assert not content_taken(content, tmp_path / "file.pth")


def test_a_folder_and_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    assert not accepted_weights(tmp_path)
    path = tmp_path / "file.pth"
    path.touch()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(EncoderFileError, match=r"file.pth: cannot be opened \(Permission denied\)"):
        load_pretrained(path)


TWO = {
    "two prefixes": lambda a, b: {"state_dict": {**a("student."), **b("teacher.")}},
    "a prefix and none": lambda a, b: {**a(""), **b("ema.")},
    "two dictionaries": lambda a, b: {"student": a(""), "teacher": b("")},
    "a dictionary and top level": lambda a, b: {**a(""), "model_ema": b("")},
}


@pytest.mark.parametrize("case", TWO)
def test_two_encoders_in_one_file_are_refused_by_their_names(tmp_path, case):
    def state(prefix):
        return monai_content(prefix)["state_dict"]

    path = tmp_path / "both.pt"
    torch.save(TWO[case](state, state), path)
    with pytest.raises(EncoderFileError, match=r"contains 2 encoders .*teacher and a student") as refused:
        load_pretrained(path)
    # The command in the message keeps one, which can be loaded.
    command = str(refused.value).split('python -c "')[1].removesuffix('"')
    exec(command.replace("'encoder.pt'", f"'{tmp_path}/one.pt'"), {})
    assert accepted_weights(tmp_path / "one.pt")
