"""MONAI's Swin UNETR is the peer: same weights, same features."""

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings, SwinEncoder
from nnunetv2_swinfuse.architecture.swin import PatchEmbedding

swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr", reason="MONAI is the peer of this test")

RENAMED = {"attn.relative_position_bias_table": "attention.relative_position_bias", "attn.": "attention.",
           "mlp.linear1": "mlp.expand", "mlp.linear2": "mlp.reduce", "downsample.": "merging."}  # fmt: skip


def ours_from_monai(state):
    names = {}
    for name, tensor in state.items():
        if name.endswith("relative_position_index"):
            continue
        if name.startswith("patch_embed."):
            names["patch_embed", name.removeprefix("patch_embed.")] = tensor
            continue
        layer, _, rest = name.split(".", 2)
        for old, new in RENAMED.items():
            rest = rest.replace(old, new)
        names["encoder", f"stages.{int(layer[-1]) - 1}.{rest}"] = tensor
    return [{k[1]: v for k, v in names.items() if k[0] == part} for part in ("patch_embed", "encoder")]


@pytest.mark.parametrize("shape", [(32, 32, 32), (48, 36, 40)])
def test_features_and_gradients_equal_monais(shape):
    torch.manual_seed(0)
    # Windows of 2 are clamped nowhere: MONAI looks up another bias where they are.
    peer = swin_unetr.SwinTransformer(
        in_chans=1, embed_dim=12, window_size=(2, 2, 2), patch_size=(2, 2, 2), depths=(2, 2, 2, 2),
        num_heads=(2, 2, 4, 4), downsample=swin_unetr.PatchMergingV2, spatial_dims=3,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    settings = EncoderSettings(12, (2, 2, 2, 2), (2, 2, 4, 4), window_size=2, domain_invariance=None)
    patch_embed = PatchEmbedding(1, 12, (2, 2, 2)).double()
    encoder = SwinEncoder(settings, [(2, 2, 2)] * 4).double()
    embed_state, encoder_state = ours_from_monai(peer.state_dict())
    patch_embed.load_state_dict(embed_state)
    encoder.load_state_dict(encoder_state)

    image = torch.randn(2, 1, *shape, dtype=torch.float64)
    expected = peer(image, normalize=True)
    found = encoder(patch_embed(image))
    weights = [torch.randn_like(e) for e in found]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    sum((w * f).sum() for w, f in zip(weights, found, strict=True)).backward()
    sum((w * f).sum() for w, f in zip(weights, expected, strict=True)).backward()
    table = peer.layers1[0].blocks[1].attn.relative_position_bias_table
    torch.testing.assert_close(encoder.stages[0].blocks[1].attention.relative_position_bias.grad, table.grad)
    torch.testing.assert_close(patch_embed.proj.weight.grad, peer.patch_embed.proj.weight.grad)
