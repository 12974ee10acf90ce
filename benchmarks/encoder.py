"""The Swin encoder (without the DIM, which MONAI does not have) against MONAI's, with the same weights.

python benchmarks/encoder.py --quick            # a CPU
python benchmarks/encoder.py --bf16 [--compile] # a GPU
"""

from __future__ import annotations

import sys

import torch
from measure import Competitors, check, compare, largest_difference, outputs_of, parse, random_input, report
from monai.networks.nets import swin_unetr
from torch import Tensor, nn

from nnunetv2_swinfuse.architecture.monai import MonaiReading, encoder_from_monai
from nnunetv2_swinfuse.architecture.swin import PatchEmbedding
from nnunetv2_swinfuse.architecture.swin_encoder import SwinEncoder


def monai(shape: tuple[int, ...], flash: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return swin_unetr.SwinTransformer(
        in_chans=1, embed_dim=48, window_size=(7, 7, 7), patch_size=(2, 2, 2), depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24), downsample=swin_unetr.PatchMergingV2, spatial_dims=3, use_flash_attention=flash,
    )  # fmt: skip


def monai_flash(shape: tuple[int, ...]) -> nn.Module:
    return monai(shape, flash=True)


class Ours(nn.Module):
    """Patch embedding and Swin stages with the weights of MONAI's encoder."""

    def __init__(self, peer: nn.Module):
        super().__init__()
        encoder = encoder_from_monai(peer.state_dict(), MonaiReading("mergingv2"), "MONAI")
        self.patch_embed = PatchEmbedding(1, encoder.settings.feature_size, (2, 2, 2))
        self.encoder = SwinEncoder(encoder.settings, encoder.strides[2:])
        self.load_state_dict(encoder.weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.encoder(self.patch_embed(x))


def ours(shape: tuple[int, ...]) -> nn.Module:
    return Ours(monai(shape))


def main() -> None:
    options = parse(__doc__)
    competitors = Competitors({"SwinFUSE encoder": ours, "MONAI": monai, "MONAI, use_flash_attention": monai_flash})
    checks = {}
    for shape in options.shapes:
        x = random_input(competitors, shape, 1, options.device)
        networks = [build(shape).to(options.device) for build in (ours, monai, monai_flash)]
        features, gradients = [], []
        for transposed, network in zip((False, True, True), networks, strict=True):
            image = x.transpose(2, 4) if transposed else x
            outputs = [f.transpose(2, 4) if transposed else f for f in outputs_of(network, image.contiguous())]
            # Weighted: the mean square of normalised features is constant, so its gradient would be rounding error.
            generator = torch.Generator().manual_seed(1)
            weights = [torch.randn(f.shape, generator=generator).to(f.device) for f in outputs]
            sum((w * f).mean() for w, f in zip(weights, outputs, strict=True)).backward()
            features.append(outputs)
            gradients.append([dict(network.named_parameters())["patch_embed.proj.bias"].grad])
        for name, index in (("MONAI", 1), ("flash", 2)):
            what = f"{'x'.join(map(str, shape))} {name}"
            difference = largest_difference(features[0], features[index])
            checks[f"features, {what}"] = check(f"features, {what}", difference, 1e-4)
            difference = largest_difference(gradients[0], gradients[index])
            checks[f"gradients, {what}"] = check(f"gradients, {what}", difference, 1e-3)
        del networks, features, gradients
    rows = compare(competitors, options)
    report("Encoder, against MONAI's Swin transformer", "python " + " ".join(sys.argv), checks, rows, options)


if __name__ == "__main__":
    main()
