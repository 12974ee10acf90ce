"""Names in a plans.json that nnU-Net would import: only networks and layers from a list, only plain names elsewhere.

nnU-Net finds the network and its layers by `pydoc.locate`, which imports any module of that name; everything else it
looks for inside its own package, where a name without dots cannot lead outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nnunetv2_swinfuse.errors import InputError

NETWORKS = frozenset(
    {
        "nnunetv2_swinfuse.architecture.unet.SwinFUSEUNet",
        "nnunetv2_swinfuse.architecture.residual_unet.ResEncFUSEUNet",
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "dynamic_network_architectures.architectures.unet.ResidualUNet",
        "dynamic_network_architectures.architectures.primus.Primus",
    }
)
_LAYERS = (
    ("torch.nn", "LeakyReLU ReLU GELU ELU PReLU SiLU Dropout2d Dropout3d InstanceNorm2d InstanceNorm3d Conv2d Conv3d"),
    ("torch.nn.modules.conv", "Conv2d Conv3d"),
    ("torch.nn.modules.instancenorm", "InstanceNorm2d InstanceNorm3d"),
    ("torch.nn.modules.batchnorm", "BatchNorm2d BatchNorm3d"),
    ("torch.nn.modules.dropout", "Dropout2d Dropout3d"),
    ("torch.nn.modules.activation", "LeakyReLU ReLU GELU ELU PReLU SiLU"),
    ("dynamic_network_architectures.building_blocks.residual", "BasicBlockD BottleneckD"),
)
LAYERS = frozenset(f"{module}.{name}" for module, names in _LAYERS for name in names.split())
# Keys whose values nnU-Net looks up inside its own package.
_OWN_NAMES = (
    "preprocessor_name", "resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities", "UNet_class_name",
    "image_reader_writer", "label_manager", "experiment_planner_used", "normalization_schemes", "previous_stage",
)  # fmt: skip
_PLAIN = re.compile(r"[A-Za-z_0-9]+")


def check_plans(plans: Mapping[str, Any], where: object) -> None:
    """Refuses plans that would import something else.

    Args:
        plans: content of plans.json.
        where: the file, for the message.

    Raises:
        InputError: naming the file and every name that is not on the list.
    """
    try:
        problems = list(_problems(plans))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: no plans of nnU-Net v2 ({type(error).__name__}: {error})") from error
    if problems:
        raise InputError(
            f"{where}: names that nnU-Net would import and that are not on this package's list: {'; '.join(problems)}. "
            "Do not use this model unless you trust its author with your computer"
        )


def _problems(plans: Mapping[str, Any]) -> Iterator[str]:
    for name, block in (("plans", plans), *plans["configurations"].items()):
        for key in _OWN_NAMES:
            values = block.get(key)
            for value in values if isinstance(values, list) else [values]:
                if value is not None and not (isinstance(value, str) and _PLAIN.fullmatch(value)):
                    yield f"{key} {value!r} ({name})"
        architecture = block.get("architecture")
        if architecture is None:
            continue
        if architecture["network_class_name"] not in NETWORKS:
            yield f"network {architecture['network_class_name']!r} ({name})"
        for key in architecture.get("_kw_requires_import", ()):
            value = architecture["arch_kwargs"].get(key)
            if value is not None and value not in LAYERS:
                yield f"{key} {value!r} ({name})"
