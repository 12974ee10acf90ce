"""Starts a run from an existing encoder, of SwinFUSE or MONAI, instead of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from nnunetv2_swinfuse.architecture.encoder_file import Encoder, EncoderFileError
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.architecture.transfer import TransferError, TransferReport, transfer_encoder
from nnunetv2_swinfuse.errors import InputError
from pretraining.configuration import Configuration
from pretraining.model import NETWORK_HEAD, PretrainingModel


def load_initial(configuration: Configuration) -> tuple[Configuration, Encoder | None]:
    """Loads the encoder that `init_from` names.

    Returns:
        The configuration, adapted to how the weights have to be read, and the encoder; None without `init_from`.

    Raises:
        InputError: when the file holds no usable encoder, listing all sizes that differ, or for a setting of random
            weights.
    """
    if not configuration.init_from:
        return configuration, None
    if configuration.dim_initial_scale != 1:
        raise InputError(
            f"dim_initial_scale is {configuration.dim_initial_scale}; with --init_from the module begins as in the "
            "file (as the identity where the file has none): leave it out"
        )
    try:
        encoder = load_pretrained(configuration.init_from)
    except (EncoderFileError, ValueError) as error:
        raise InputError(f"init_from: {error}") from error
    stored, expected = encoder.settings, configuration.encoder_settings
    names = ("backbone", "feature_size", "depths", "num_heads", "window_size", "mlp_ratio")
    differing = [name for name in names if getattr(stored, name) != getattr(expected, name)]
    if differing:
        listing = "; ".join(
            f"{name} is {getattr(stored, name)} in the file, {getattr(expected, name)} in the settings"
            for name in differing
        )
        options = " ".join(f"--{name} {_format_value(getattr(stored, name))}" for name in differing)
        raise InputError(
            f"init_from: {configuration.init_from} does not fit preset {configuration.preset!r}: {listing}. "
            f"To use the file's sizes: {options}"
        )
    adapted = replace(
        configuration,
        monai_legacy_merging=stored.monai_legacy_merging,
        monai_clamped_bias=stored.monai_clamped_bias,
    )
    return adapted, encoder


class _NamedAsNetwork:
    """The model with the names of a segmentation network, whose decoder is its inpainting head where it has one."""

    def __init__(self, model: PretrainingModel):
        self.settings, self.topology = model.settings, model.topology
        self._model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._model.named_parameters():
            yield name.removeprefix(NETWORK_HEAD), parameter


def initialize(model: PretrainingModel, encoder: Encoder) -> TransferReport:
    """Copies the encoder into a new model, in place.

    If the encoder has no Domain Invariance Module, such as MONAI's, the model's module starts as the identity: its last
    projection is zero, so that the Swin stages get the input that they were trained on.

    Raises:
        InputError: when the encoder does not fit the model.
    """
    try:
        report = transfer_encoder(_NamedAsNetwork(model), encoder, new_domain_invariance=True, decoder=True)
    except TransferError as error:
        raise InputError(f"init_from: {error}") from error
    module = model.encoder.domain_invariance
    if encoder.settings.domain_invariance is None and module is not None:
        module.scale_update(0)
    return report


def _format_value(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
