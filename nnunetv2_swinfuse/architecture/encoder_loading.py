"""Any pretrained encoder file: ours, or MONAI's."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from nnunetv2_swinfuse.architecture.encoder_file import Encoder, encoder_from_content, load_content
from nnunetv2_swinfuse.architecture.file_hash import file_hash
from nnunetv2_swinfuse.architecture.monai import MonaiReading, encoder_from_monai

MERGING_VARIABLE = "SWINFUSE_MONAI_MERGING"
CLAMPED_BIAS_VARIABLE = "SWINFUSE_MONAI_CLAMPED_BIAS"


def load_pretrained(path: str | os.PathLike[str], reading: MonaiReading | None = None) -> Encoder:
    """Reads an encoder that `swinfuse_pretrain` published, or the Swin encoder of a MONAI checkpoint.

    Args:
        path: the file, loaded with `weights_only=True`.
        reading: what a MONAI checkpoint does not say; from the environment when not given.

    Raises:
        EncoderFileError: when the file is missing, damaged, needs code execution, holds no encoder or several, or is
            not what it says.
        ValueError: for an environment variable with an unknown value.
    """
    path = Path(path)
    content = load_content(path)
    if "format" in content:
        return encoder_from_content(content, path)
    encoder = encoder_from_monai(content, reading or monai_reading(), str(path))
    return replace(encoder, sha256=file_hash(path))


def monai_reading() -> MonaiReading:
    """`SWINFUSE_MONAI_MERGING` and `SWINFUSE_MONAI_CLAMPED_BIAS`, or the defaults.

    Raises:
        ValueError: naming the choices.
    """
    values = {"merging": os.environ.get(MERGING_VARIABLE), "clamped_bias": os.environ.get(CLAMPED_BIAS_VARIABLE)}
    return MonaiReading(**{name: value for name, value in values.items() if value})  # type: ignore[arg-type]
