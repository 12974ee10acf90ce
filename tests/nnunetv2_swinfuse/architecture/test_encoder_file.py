import pickle
from dataclasses import replace

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import EncoderFileError, load_encoder, save_encoder, weights_digest
from nnunetv2_swinfuse.architecture.torch_file import save_torch_file

from .networks import HALVINGS, build, encoder_of, whole


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
    save_torch_file({**torch.load(path, weights_only=True), **changes}, path)


def forge(path, **changes):
    """As `change`, with a digest that fits: what a writer of other intentions, or of another version, would do."""
    content = {**torch.load(path, weights_only=True), **changes}
    save_torch_file({**content, "weights_digest": weights_digest(content)}, path)


def forge_weights(path, change):
    forge(path, network_weights=change(torch.load(path, weights_only=True)["network_weights"]))


def replace_weight(name, change):
    return lambda path: forge_weights(path, lambda weights: {**weights, name: change(weights[name])})


def spoil_value(value):
    def change(weight):
        weight.view(-1)[3] = value
        return weight

    return change


def renamed_copies(weights, old, new):
    return {**weights, **{name.replace(old, new): tensor for name, tensor in weights.items() if old in name}}


QKV = "encoder.stages.0.blocks.1.attention.qkv.weight"


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
    "newer": (lambda path: change(path, format_version=99), "encoder format 99.*newer wheel"),
    "settings": (lambda path: change(path, settings={"size": 3}), "inconsistent.*unknown encoder settings"),
    "older": (
        lambda path: change(path, format_version=1),
        "encoder format 1, of an older.*Pretrain again: swinfuse_pre",
    ),
    "no version": (lambda path: change(path, format_version=None), "encoder format None"),
    "decoder": (lambda path: change(path, network_weights={"decoder.x": torch.zeros(1)}), "tensors of no encoder"),
    "no weights": (lambda path: change(path, network_weights={}), "network_weights is empty"),
    "weights are a tensor": (lambda path: change(path, network_weights=torch.zeros(3)), "empty or no dictionary"),
    "NaN": (replace_weight(QKV, spoil_value(float("nan"))), f"{QKV} holds values that are not finite"),
    "Inf": (replace_weight("patch_embed.proj.bias", spoil_value(float("inf"))), "patch_embed.proj.bias .*not finite"),
    "too large": (replace_weight(QKV, lambda weight: weight.double() * 1e300), f"{QKV} holds values .*not finite"),
    "int8": (replace_weight(QKV, lambda weight: weight.to(torch.int8)), f"{QKV} is of torch.int8.*floating-point"),
    "complex": (replace_weight(QKV, lambda weight: weight.to(torch.complex64)), f"{QKV} is of torch.complex64"),
    "sparse": (
        lambda path: change(path, network_weights={QKV: torch.eye(3).to_sparse()}),
        f"{QKV} is of .*sparse.*dense",
    ),
    "shape": (
        replace_weight(QKV, lambda weight: weight[:-1]),
        r"qkv.weight: shape \(35, 12\), expected shape \(36, 12\)",
    ),
    "missing weight": (
        lambda path: forge_weights(path, lambda weights: {n: w for n, w in weights.items() if n != QKV}),
        "qkv.weight: missing, expected",
    ),
    "extra block": (
        lambda path: forge_weights(
            path, lambda weights: renamed_copies(weights, "stages.0.blocks.1", "stages.0.blocks.2")
        ),
        "encoder.stages.0.blocks.2.norm1.weight: not expected",
    ),
    "module beside no module": (
        lambda path: forge(
            path, settings={**torch.load(path, weights_only=True)["settings"], "domain_invariance": None}
        ),
        "encoder.domain_invariance.ct_block.* not expected",
    ),
    "other patch stride": (
        lambda path: forge(path, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]),
        r"patch_embed.proj.weight: shape \(12, 1, 2, 2, 2\), expected shape \(12, 1, 1, 2, 2\)",
    ),
    "other merging stride": (
        lambda path: forge(path, strides=[[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2]]),
        "stages.0.merging.*expected shape",
    ),
    "fewer strides": (lambda path: forge(path, strides=HALVINGS[:3]), "encoder.stages.1.*not expected"),
    "more strides": (lambda path: forge(path, strides=[*HALVINGS, [2, 2, 2]]), "strides list 5 stages, more than"),
    "strides of three": (lambda path: forge(path, strides=[[1, 1, 1], [3, 3, 3]]), "expected 1 or 2"),
    "no strides": (lambda path: forge(path, strides=None), "inconsistent"),
    "many blocks": (
        lambda path: forge(path, settings={**torch.load(path, weights_only=True)["settings"], "depths": [10**9, 2]}),
        "settings ask for 1000000002 blocks",
    ),
    "channels": (lambda path: forge(path, input_channels=0), "input_channels is 0"),
    "another digest": (lambda path: change(path, weights_digest="0" * 64), "have changed since the file was written"),
    "a changed weight": (
        lambda path: change(
            path, network_weights={**torch.load(path, weights_only=True)["network_weights"], QKV: torch.zeros(36, 12)}
        ),
        "have changed since",
    ),
    "spacing": (lambda path: change(path, spacing=[1.0, 0.0, 1.0]), "spacing is .*three positive numbers"),
    "modalities": (lambda path: change(path, modalities=5), "modalities is 5"),
    "collection": (lambda path: change(path, collection=[1]), "collection is .1., expected a dictionary"),
    "normalisation": (lambda path: change(path, normalisation=5), "normalisation is 5, expected a dictionary"),
    "source": (lambda path: change(path, source=7), "source is 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_a_remedy(path, case):
    spoil, words = BAD[case]
    spoil(path)
    with pytest.raises(EncoderFileError, match=f"(?s){words}") as caught:
        load_encoder(path)
    assert str(path) in str(caught.value)


def test_a_forged_file_is_taken_when_nothing_is_wrong(path, settings):
    forge(path)
    assert load_encoder(path).settings == settings


def test_left_out_is_no_key_of_a_file(path):
    # It was read from there as if MONAI's reader had written it: `TypeError: 'int' object is not iterable`.
    change(path, left_out=5)
    assert load_encoder(path).left_out == ()


def test_a_failed_write_leaves_the_old_file_and_no_litter(path):
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_torch_file({"x": lambda: None}, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["encoder.pth"]


def test_a_layer_under_two_names_is_stored_once(residual_settings, tmp_path):
    encoder = encoder_of(build(HALVINGS, residual_settings))
    # Not contiguous: making it so would copy it for each name.
    name = "encoder.stages.3.blocks.1.conv1.conv.weight"
    second = name.replace("conv1.conv.", "conv1.all_modules.0.")
    weight = encoder.weights[name].transpose(0, 1).contiguous().transpose(0, 1)
    encoder = replace(encoder, weights={**encoder.weights, name: weight, second: weight})
    save_encoder(encoder, tmp_path / "encoder.pth")
    stored = torch.load(tmp_path / "encoder.pth", weights_only=True)["network_weights"]
    assert stored[name].data_ptr() == stored[second].data_ptr()
    read = load_encoder(tmp_path / "encoder.pth").weights
    assert torch.equal(read[name], weight)
    assert torch.equal(read[second], weight)


@pytest.fixture
def whole_path(tmp_path, settings):
    path = tmp_path / "whole.pth"
    save_encoder(whole(build(HALVINGS, settings)), path)
    return path


def test_a_whole_network_comes_back_beside_its_encoder(path, whole_path, settings):
    expected = whole(build(HALVINGS, settings)).decoder_weights
    encoder = load_encoder(whole_path)
    assert encoder.decoder_weights.keys() == expected.keys()
    assert all(torch.equal(encoder.decoder_weights[name], expected[name]) for name in expected)
    # For a version that does not know decoders, the file is that of the encoder alone.
    content, alone = (torch.load(file, weights_only=True) for file in (whole_path, path))
    assert content["weights_digest"] == alone["weights_digest"]
    assert load_encoder(path).decoder_weights == {}
    assert not encoder.details


def changed_decoder(change):
    def spoil(path):
        content = torch.load(path, weights_only=True)
        save_torch_file({**content, "decoder_weights": change(content["decoder_weights"])}, path)

    return spoil


STEM = "stem.convs.0.conv.bias"
BAD_DECODERS = {
    "changed": (changed_decoder(lambda w: {**w, STEM: w[STEM] + 1}), "decoder's weights have changed"),
    "not finite": (changed_decoder(lambda w: {**w, STEM: w[STEM] / 0}), f"{STEM} holds values that are not finite"),
    "lacks one": (changed_decoder(lambda w: {n: t for n, t in w.items() if n != STEM}), f"{STEM}: missing"),
    "of an encoder": (
        changed_decoder(lambda w: {**w, "encoder.x": w[STEM]}),
        "decoder_weights holds tensors of no dec",
    ),
    "segmentation layer": (
        changed_decoder(lambda w: {**w, "decoder.seg_layers.0.bias": w[STEM]}),
        "decoder.seg_layers.0.bias: not expected",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_DECODERS.values(), ids=BAD_DECODERS)
def test_a_decoder_that_is_not_the_files_is_refused(whole_path, spoil, message):
    spoil(whole_path)
    with pytest.raises(EncoderFileError, match=message):
        load_encoder(whole_path)
