"""The whole network against MONAI's Swin UNETR and nnU-Net's own, all built from the same plan (strides and kernels).

    python benchmarks/network.py --quick            # a CPU
    python benchmarks/network.py --bf16 [--compile] # a GPU

nnU-Net's residual encoder presets M and L are one network at one patch size; they differ in the patch they plan.
"""

from __future__ import annotations

import sys

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from measure import Competitors, check, compare, largest_difference, outputs_of, parse, random_input, report
from monai.networks.nets import swin_unetr
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet

CLASSES = 14
BLOCKS = (1, 3, 4, 6, 6, 6, 6)  # of nnU-Net's ResEncUNetPlanner


def plan(shape: tuple[int, ...]) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernels as nnU-Net plans them at 1 mm."""
    _, strides, kernels, _, _ = get_pool_and_conv_props((1.0, 1.0, 1.0), shape, 4, 999999)
    return [list(map(int, s)) for s in strides], [list(map(int, k)) for k in kernels]


def ours(shape: tuple[int, ...], **choices: int) -> SwinFUSEUNet:
    torch.manual_seed(0)
    strides, kernels = plan(shape)
    architecture = plans_architecture(strides, EncoderSettings(), kernel_sizes=kernels, **choices)
    return SwinFUSEUNet(1, CLASSES, False, **architecture["arch_kwargs"])


def swin(shape: tuple[int, ...], flash: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return swin_unetr.SwinUNETR(1, CLASSES, feature_size=48, use_flash_attention=flash)


def swin_flash(shape: tuple[int, ...]) -> nn.Module:
    return swin(shape, flash=True)


def convolutional(shape: tuple[int, ...], residual: bool) -> nn.Module:
    strides, kernels = plan(shape)
    stages = len(strides)
    common = {
        "input_channels": 1, "n_stages": stages, "features_per_stage": [min(32 << s, 320) for s in range(stages)],
        "conv_op": nn.Conv3d, "kernel_sizes": kernels, "strides": strides, "num_classes": CLASSES, "conv_bias": True,
        "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    if residual:
        return ResidualEncoderUNet(
            n_blocks_per_stage=BLOCKS[:stages], n_conv_per_stage_decoder=(1,) * (stages - 1), **common
        )
    return PlainConvUNet(n_conv_per_stage=(2,) * stages, n_conv_per_stage_decoder=(2,) * (stages - 1), **common)


def plain_conv(shape: tuple[int, ...]) -> nn.Module:
    return convolutional(shape, residual=False)


def residual_encoder(shape: tuple[int, ...]) -> nn.Module:
    return convolutional(shape, residual=True)


def main() -> None:
    options = parse(__doc__)
    competitors = Competitors(
        {
            "SwinFUSEUNet": ours,
            "MONAI SwinUNETR": swin,
            "MONAI SwinUNETR, use_flash_attention": swin_flash,
            "nnU-Net PlainConvUNet": plain_conv,
            "nnU-Net ResidualEncoderUNet (M, L)": residual_encoder,
        }
    )
    shape = options.shapes[0]
    strides, kernels = plan(shape)
    block = plans_architecture(strides, EncoderSettings(), kernel_sizes=kernels)
    network = ours(shape)
    rebuilt = get_network_from_plans(
        block["network_class_name"],
        block["arch_kwargs"],
        block["_kw_requires_import"],
        1,
        CLASSES,
        deep_supervision=False,
    )
    rebuilt.load_state_dict(network.state_dict())
    x = random_input(competitors, shape, 1, torch.device("cpu"))
    with torch.no_grad():
        pairs = [(outputs_of(rebuilt.eval(), x), outputs_of(network.eval(), x))]
        x = random_input(competitors, (64, 64, 64), 1, torch.device("cpu"))  # Swin UNETR takes multiples of 32 only
        pairs.append((outputs_of(swin_flash(shape).eval(), x), outputs_of(swin(shape).eval(), x)))
    names = ("as nnU-Net builds it from plans", "MONAI flash and default")
    checks = {n: check(n, largest_difference(*pair), 1e-4) for n, pair in zip(names, pairs, strict=True)}
    rows = compare(competitors, options)
    report("Network, against Swin UNETR and nnU-Net's", "python " + " ".join(sys.argv), checks, rows, options)


if __name__ == "__main__":
    main()
