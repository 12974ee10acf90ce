"""MONAI's Swin UNETR is the peer: its weights under our names, the same features and gradients."""

import itertools

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import EncoderFileError
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.architecture.monai import MonaiReading, encoder_from_monai
from nnunetv2_swinfuse.architecture.swin import PatchEmbedding
from nnunetv2_swinfuse.architecture.swin_encoder import SwinEncoder
from nnunetv2_swinfuse.architecture.transfer import TransferError, transfer_encoder

from .networks import build

swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr", reason="MONAI is the peer of this test")


class LegacyMerging(swin_unetr.PatchMergingV2):
    """MONAI's patch merging before 1.5: sub-grids 5 and 6 repeat 2 and 3."""

    def forward(self, x):
        x = torch.nn.functional.pad(x, (0, 0, *itertools.chain(*((0, size % 2) for size in x.shape[3:0:-1]))))
        starts = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in starts], -1)))


MERGINGS = {
    "legacy": LegacyMerging,
    "merging": swin_unetr.PatchMerging,
    "mergingv2": swin_unetr.PatchMergingV2,
}


def peer_network(merging, window=3, flash=False, channels=1):
    torch.manual_seed(0)
    peer = swin_unetr.SwinTransformer(
        in_chans=channels, embed_dim=12, window_size=(window,) * 3, patch_size=(2, 2, 2), depths=(2, 2, 2, 2),
        num_heads=(2, 2, 4, 4), downsample=MERGINGS[merging], spatial_dims=3, use_flash_attention=flash,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return peer


class Ours(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.patch_embed = PatchEmbedding(encoder.input_channels, encoder.settings.feature_size, (2, 2, 2))
        self.encoder = SwinEncoder(encoder.settings, encoder.strides[2:])
        self.load_state_dict(encoder.weights)

    def forward(self, x):
        return self.encoder(self.patch_embed(x))


def turned(x):
    return x.transpose(2, 4)


@pytest.mark.slow
# Maps of stage 1: whole windows; padded, shifted, and clamped in later stages; smaller than a window throughout.
@pytest.mark.parametrize("shape", [(48, 48, 48), (40, 56, 36), (4, 32, 10)])
@pytest.mark.parametrize("merging", MERGINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_features_and_gradients_of_every_stage_equal_monais(merging, shape, dtype, tolerance):
    peer = peer_network(merging).to(dtype)
    ours = Ours(encoder_from_monai(peer.state_dict(), MonaiReading(merging), "monai.pt")).to(dtype)
    image = torch.randn(2, 1, *shape, dtype=dtype)
    expected = [turned(feature) for feature in peer(turned(image), normalize=True)]
    result = ours(image)
    for our_map, their_map in zip(result, expected, strict=True):
        assert (our_map - their_map).abs().max() < tolerance * their_map.abs().max()
    weights = [torch.randn_like(feature) for feature in result]
    for stage in range(len(result)):
        ours.zero_grad()
        peer.zero_grad()
        (weights[stage] * result[stage]).sum().backward(retain_graph=True)
        (weights[stage] * expected[stage]).sum().backward(retain_graph=True)
        # Reading is a permutation, so that gradients can be read as weights are.
        named = {name: p.grad for name, p in peer.named_parameters() if p.grad is not None}
        filled = {name: named.get(name, torch.zeros_like(tensor)) for name, tensor in peer.state_dict().items()}
        gradients = encoder_from_monai(filled, MonaiReading(merging), "monai.pt").weights
        scale = max(gradient.norm() for gradient in gradients.values())
        for name, parameter in ours.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert (gradient - gradients[name]).norm() < tolerance * scale, (stage, name)


def test_true_offsets_differ_from_monais_only_where_windows_are_clamped():
    state = peer_network("mergingv2", window=5).double().state_dict()
    as_monai, by_offset = (
        Ours(encoder_from_monai(state, MonaiReading("mergingv2", bias), "monai.pt")).double()
        for bias in ("monai", "offsets")
    )
    image = torch.randn(1, 1, 64, 64, 64, dtype=torch.float64)  # maps of 32, 16, 8, 4
    with torch.no_grad():
        pairs = list(zip(as_monai(image), by_offset(image), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs[:4])
    assert (pairs[4][0] - pairs[4][1]).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", ["", "module.", "swinViT.", "module.swinViT.", "swin_vit.", "encoder."])
@pytest.mark.parametrize("container", [None, "state_dict"])
def test_files_of_any_prefix(prefix, container, tmp_path):
    state = peer_network("merging", channels=2).state_dict()
    expected = encoder_from_monai(state, MonaiReading("merging"), "monai.pt")
    renamed = {
        prefix + name.replace("mlp.linear", "mlp.fc" if prefix == "module." else "mlp.linear"): tensor
        for name, tensor in state.items()
    }
    renamed |= {"rotation_head.weight": torch.zeros(4, 8), "decoder1.conv.weight": torch.zeros(3)}
    torch.save({container: renamed, "epoch": 3} if container else renamed, tmp_path / "monai.pt")
    result = load_pretrained(tmp_path / "monai.pt", MonaiReading("merging"))
    assert result.weights.keys() == expected.weights.keys()
    assert all(torch.equal(result.weights[name], tensor) for name, tensor in expected.weights.items())
    assert result.settings == EncoderSettings(
        12, (2, 2, 2, 2), (2, 2, 4, 4), 3, 4.0, None, monai_legacy_merging=False, monai_clamped_bias=True
    )
    assert result.input_channels == 2
    assert result.sha256
    assert result.left_out == ("rotation_head.weight", "decoder1.conv.weight")


def test_a_whole_swin_unetr(tmp_path):
    network = swin_unetr.SwinUNETR(1, 3, feature_size=12, num_heads=(3, 3, 3, 3), depths=(1, 2, 1, 1))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "swin_unetr.pt")
    result = load_pretrained(tmp_path / "swin_unetr.pt")
    assert result.settings.depths == (1, 2, 1, 1)
    assert result.settings.monai_legacy_merging
    assert "encoder1.layer.conv1.conv.weight" in result.left_out


def test_transfer_into_the_network_with_and_without_all_halvings():
    encoder = encoder_from_monai(peer_network("legacy").state_dict(), MonaiReading("legacy"), "monai.pt")
    halvings = [[1, 1, 1], *[[2, 2, 2]] * 5]
    network = build(halvings, encoder.settings)
    report = transfer_encoder(network, encoder)
    assert sorted(report.matched) == sorted(encoder.weights)
    assert report.used_share == 1
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        for ours, their_map in zip(network.encoder(network.patch_embed(image)), Ours(encoder)(image), strict=True):
            torch.testing.assert_close(ours, their_map)

    # Where z is not halved any more, an image that does not change along z gives what it gave.
    flat = build([[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2]], encoder.settings)
    report = transfer_encoder(flat, encoder)
    assert set(report.adapted) == {
        f"encoder.stages.0.merging.{n}" for n in ("norm.weight", "norm.bias", "reduction.weight")
    }
    merging, pretrained = flat.encoder.stages[0].merging, Ours(encoder).encoder.stages[0].merging
    row = torch.randn(1, 1, 4, 4, 12).expand(-1, 4, -1, -1, -1)
    with torch.no_grad():
        assert merging(row).shape[1] == 4
        # The legacy norm weighs its sub-grids otherwise; in a map constant along y and x as well, nothing differs.
        constant = torch.randn(1, 1, 1, 1, 12).expand(-1, 4, 4, 4, -1)
        torch.testing.assert_close(merging(constant)[:, ::2], pretrained(constant), atol=1e-4, rtol=1e-4)


def test_other_sizes_are_listed():
    encoder = encoder_from_monai(peer_network("merging").state_dict(), MonaiReading("merging"), "monai.pt")
    network = build([[1, 1, 1], *[[2, 2, 2]] * 3], EncoderSettings(24, (1, 2), (2, 2), 4, domain_invariance=None))
    with pytest.raises(
        TransferError, match=r"monai.pt .*feature_size is 12 in the encoder, 24 .*depths.*window_size is 3"
    ):
        transfer_encoder(network, encoder)


def without(state, ending):
    return {name: tensor for name, tensor in state.items() if not name.endswith(ending)}


def test_files_that_are_no_usable_encoder(tmp_path):
    state = peer_network("merging").state_dict()
    cases = {
        "nothing.pt": ({"conv.weight": torch.zeros(2)}, "contains no encoder.*'conv.weight'"),
        "incomplete.pt": (without(state, "qkv.bias"), "qkv.bias: missing, expected shape .36,."),
        "v2.pt": ({**state, "layers1c.0.conv.weight": torch.zeros(2)}, "layers1c.*use_v2"),
        "patch4.pt": ({**state, "patch_embed.proj.weight": torch.zeros(12, 1, 4, 4, 4)}, "patch size"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(EncoderFileError, match=message):
            load_pretrained(tmp_path / name)
    with pytest.raises(EncoderFileError, match="no such encoder file"):
        load_pretrained(tmp_path / "missing.pt")


def test_a_file_that_needs_code_execution_is_refused_with_a_command_that_converts_it(tmp_path):
    state = peer_network("merging").state_dict()
    torch.save({"state_dict": state, "options": {MonaiReading()}}, tmp_path / "pickled.pt")
    with pytest.raises(EncoderFileError, match=r"python -c .*torch.load") as refused:
        load_pretrained(tmp_path / "pickled.pt")
    command = str(refused.value).split('python -c "')[1].split('"')[0].replace("'tensors.pth'", f"'{tmp_path}/t.pth'")
    exec(command, {})
    assert load_pretrained(tmp_path / "t.pth", MonaiReading("merging")).weights


def test_environment_chooses_the_reading(tmp_path, monkeypatch):
    torch.save(peer_network("merging").state_dict(), tmp_path / "monai.pt")
    monkeypatch.setenv("SWINFUSE_MONAI_MERGING", "merging")
    monkeypatch.setenv("SWINFUSE_MONAI_CLAMPED_BIAS", "offsets")
    settings = load_pretrained(tmp_path / "monai.pt").settings
    assert (settings.monai_legacy_merging, settings.monai_clamped_bias) == (False, False)
    monkeypatch.setenv("SWINFUSE_MONAI_MERGING", "v2")
    with pytest.raises(ValueError, match="'v2'; expected one of legacy, merging, mergingv2"):
        load_pretrained(tmp_path / "monai.pt")
