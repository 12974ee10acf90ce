"""nnU-Net's plans of real datasets (numbers only, as nnU-Net 2.8.1 planned them), as files."""

import json
from pathlib import Path

H = [2, 2, 2]
CT = {
    "mean": 93.1, "median": 97.0, "std": 43.5, "min": -981.0, "max": 1534.0, "percentile_00_5": -29.0,
    "percentile_99_5": 238.0,
}  # fmt: skip
REAL = {
    "Dataset501_Hippocampus": {"patch": [40, 56, 40], "spacing": [1.0, 1.0, 1.0], "strides": [H] * 3},
    # nnU-Net exchanges z and y here.
    "Dataset502_HeadNeckCT": {
        "patch": [64, 128, 112], "spacing": [4.688000202178955, 3.0, 4.688000202178955], "strides": [H] * 4,
        "transpose": [1, 0, 2],
    },
    "Dataset503_BrainMR": {"patch": [80, 96, 80], "spacing": [2.0, 2.0, 2.0], "strides": [H] * 4},
    "Dataset510_AbdomenMR": {
        "patch": [40, 128, 128], "spacing": [7.7, 2.5, 2.5], "strides": [[1, 2, 2], H, H, H, [1, 2, 2]],
    },
    "Dataset511_AbdomenCT": {"patch": [96, 160, 128], "spacing": [5.0, 2.5, 2.5], "strides": [[1, 2, 2], H, H, H, H]},
    "Dataset520_Deep": {"patch": [128, 128, 128], "spacing": [1.0, 1.0, 1.0], "strides": [H] * 6},
}  # fmt: skip


def with_channels(content, *schemes, **changes):
    """Plans with channels that are normalised by these schemes; properties of CT are changed."""
    content["configurations"]["3d_fullres"]["normalization_schemes"] = list(schemes)
    properties = {str(channel): {**CT, **changes} for channel in range(len(schemes))}
    return {**content, "foreground_intensity_properties_per_channel": properties}


def plans_content(patch, spacing, strides, transpose=(0, 1, 2), **arguments):
    strides = [[1, 1, 1], *strides]
    kwargs = {"n_stages": len(strides), "strides": strides, "kernel_sizes": [[3, 3, 3]] * len(strides), **arguments}
    fullres = {"patch_size": patch, "spacing": spacing, "architecture": {"arch_kwargs": kwargs}}
    lowres = {"inherits_from": "3d_fullres", "spacing": [2 * value for value in spacing]}
    configurations = {"2d": {"patch_size": patch[1:]}, "3d_fullres": fullres, "3d_lowres": lowres}
    backward = [list(transpose).index(axis) for axis in range(3)]
    return {"configurations": configurations, "transpose_forward": list(transpose), "transpose_backward": backward}


def write_plans(folder: Path) -> None:
    """The folder nnUNet_preprocessed with default plans of all datasets and residual plans of the first."""
    for dataset, values in REAL.items():
        (folder / dataset).mkdir()
        scheme = "CTNormalization" if dataset.endswith("CT") else "ZScoreNormalization"
        (folder / dataset / "nnUNetPlans.json").write_text(json.dumps(with_channels(plans_content(**values), scheme)))
    blocks = {"n_blocks_per_stage": [1, 3, 4, 6]}
    residual = plans_content(**REAL["Dataset501_Hippocampus"], **blocks)
    (folder / "Dataset501_Hippocampus" / "nnUNetResEncUNetMPlans.json").write_text(json.dumps(residual))
