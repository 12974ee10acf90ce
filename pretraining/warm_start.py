"""Beginning a run from an encoder that was pretrained before, by SwinFUSE or by MONAI, instead of random weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from nnunetv2_swinfuse.architecture.encoder_file import Encoder, EncoderFileError
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.architecture.transfer import TransferError, TransferReport, transfer_encoder
from pretraining.configuration import Configuration
from pretraining.errors import InputError
from pretraining.model import PretrainingModel


def load_initial(configuration: Configuration) -> tuple[Configuration, Encoder | None]:
    """The encoder that `init_from` names, and the configuration with what its weights ask of the network.

    Raises:
        InputError: when the file is no usable encoder, or listing every size in which it differs.
    """
    if not configuration.init_from:
        return configuration, None
    try:
        encoder = load_pretrained(configuration.init_from)
    except (EncoderFileError, ValueError) as error:
        raise InputError(f"init_from: {error}") from error
    theirs, ours = encoder.settings, configuration.encoder_settings
    names = ("backbone", "feature_size", "depths", "num_heads", "window_size", "mlp_ratio")
    differing = [name for name in names if getattr(theirs, name) != getattr(ours, name)]
    if differing:
        listing = "; ".join(f"{n} is {getattr(theirs, n)} there, {getattr(ours, n)} here" for n in differing)
        options = " ".join(f"--{name} {_words(getattr(theirs, name))}" for name in differing)
        raise InputError(
            f"init_from: {configuration.init_from} does not fit preset {configuration.preset!r}: {listing}. "
            f"To take its sizes: {options}"
        )
    return replace(
        configuration,
        monai_legacy_merging=theirs.monai_legacy_merging,
        monai_clamped_bias=theirs.monai_clamped_bias,
    ), encoder


def initialize(model: PretrainingModel, encoder: Encoder) -> TransferReport:
    """Copies the encoder into a new model, in place.

    Where the encoder comes without a Domain Invariance Module, as MONAI's, the model's begins as the identity: its last
    projection is zero, so that the Swin stages see what they were trained on.

    Raises:
        InputError: when it does not fit.
    """
    try:
        report = transfer_encoder(model, encoder, new_domain_invariance=True)
    except TransferError as error:
        raise InputError(f"init_from: {error}") from error
    module = model.encoder.domain_invariance
    if encoder.settings.domain_invariance is None and module is not None:
        torch.nn.init.zeros_(module.proj.weight)
        torch.nn.init.zeros_(module.proj.bias)
    return report


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
