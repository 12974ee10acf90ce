"""The Domain Invariance Module against the Swin stages that follow it, on an image's patch embedding (48 channels).

python benchmarks/dim.py --quick            # a CPU
python benchmarks/dim.py --bf16 [--compile] # a GPU
"""

from __future__ import annotations

import sys

import torch
from measure import Competitors, check, compare, largest_difference, parse, random_input, report
from torch import nn

from nnunetv2_swinfuse.architecture.domain_invariance import DomainInvariance, DomainInvarianceSettings
from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.swin_encoder import SwinEncoder


def swin_stages(shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return SwinEncoder(EncoderSettings(domain_invariance=None), [(2, 2, 2)] * 4)


def module(shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return DomainInvariance(48, 3, DomainInvarianceSettings())


def main() -> None:
    options = parse(__doc__)
    competitors = Competitors({"Swin stages": swin_stages, "DIM": module}, channels=48, scale=2)
    x = random_input(competitors, options.shapes[0], 1, options.device)
    network = module(options.shapes[0]).to(options.device)
    with torch.no_grad():
        fused = network.forward_pair(x, x.flip(2))
        written_out = network.forward_pair(x, x.flip(2), need_weights=True)
    name = "fused attention and attention written out"
    checks = {name: check(name, largest_difference([fused.ct, fused.mr], [written_out.ct, written_out.mr]), 1e-4)}
    rows = compare(competitors, options)
    report("DIM, against the Swin stages", "python " + " ".join(sys.argv), checks, rows, options)


if __name__ == "__main__":
    main()
