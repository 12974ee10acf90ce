"""The encoders of the voxel probe: those of runs and encoder files, and random ones with the same settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import ENCODER_FILE, Encoder, EncoderFileError, weights_digest
from nnunetv2_swinfuse.architecture.encoder_file import FORMAT as ENCODER_FORMAT
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.architecture.registry import build_backbone
from nnunetv2_swinfuse.architecture.tensor_names import pretrained
from nnunetv2_swinfuse.architecture.topology import Topology, Triple
from nnunetv2_swinfuse.architecture.torch_file import TorchFileError, load_torch_file
from nnunetv2_swinfuse.architecture.transfer import TransferError, transfer_encoder
from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import CHECKPOINT, FORMAT, load_checkpoint
from pretraining.configuration import Configuration
from pretraining.preprocessed.collection import FOLDER, INDEX
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.preset_files import load_preset

# Names of the arms of random encoders: with the weights that a training starts from, and with larger ones.
RANDOM, XAVIER = "random", "xavier"


class FrozenEncoder(nn.Module):
    """Patch embedding and encoder with random weights, not trained, in evaluation mode.

    Args:
        settings: sizes.
        strides: strides of every stage (z, y, x), the first all 1.
        spacing: spacing of the images, mm (z, y, x).
        seed: seed of the weights.
        xavier: draws all linear layers as Glorot and Bengio (2010) do. Swin stages start with a standard deviation of
            0.02, which makes attention and feed-forward networks of few channels negligible beside their input.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        strides: Sequence[Triple],
        spacing: Sequence[float] | None,
        seed: int = 0,
        xavier: bool = False,
    ):
        super().__init__()
        self.settings = settings
        self.topology: Topology = settings.topology(strides)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patch_embed, self.encoder = build_backbone(settings, self.topology, spacing=spacing)
            for module in self.encoder.modules() if xavier else ():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
            if xavier and (module := self.encoder.domain_invariance) is not None:
                # How large its update starts belongs to the architecture.
                module.scale_update(module.settings.initial_scale)
        self.requires_grad_(False).eval()

    @property
    def divisor(self) -> Triple:
        """What the sizes of an image (z, y, x) must be divisible by."""
        return self.topology.downsampling


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder of a run or a file.

    Attributes:
        name: name of its arm; several seeds of one method have the same.
        encoder: weights and settings.
        seed: seed of its pretraining.
        normalisation: normalisation of the collection it was pretrained on; None where the file does not say.
    """

    name: str
    encoder: Encoder
    seed: int
    normalisation: Normalisation | None

    @property
    def architecture(self) -> str:
        """Equal for encoders that have the same floor of random encoders."""
        return json.dumps([self.encoder.settings.to_dict(), [list(stride) for stride in self.encoder.strides]])

    @property
    def digest(self) -> str:
        """Of weights, settings and strides."""
        content = {
            "network_weights": self.encoder.weights,
            "settings": self.encoder.settings.to_dict(),
            "strides": [list(stride) for stride in self.encoder.strides],
            "input_channels": self.encoder.input_channels,
        }
        return weights_digest(content)

    def network(self, spacing: Sequence[float]) -> FrozenEncoder:
        """The encoder for images of a spacing, mm (z, y, x).

        Raises:
            InputError: when the weights do not fit the settings.
        """
        network = FrozenEncoder(self.encoder.settings, self.encoder.strides, spacing)
        try:
            transfer_encoder(network, self.encoder)
        except TransferError as error:
            raise InputError(f"{self.encoder.path}: {error}") from error
        return network


def read_encoder(argument: str, preprocessed_root: Path | None = None) -> TrainedEncoder:
    """Reads an arm from the command line.

    Args:
        argument: `PATH` or `NAME=PATH`; the path is that of a run's folder, a checkpoint of a run, or an encoder file.
            Of a run's folder the encoder is read, or the checkpoint if that is newer.
        preprocessed_root: nnUNet_preprocessed, where the normalisation of a checkpoint's collection is looked up.

    Raises:
        InputError: when there is no such file, or it holds no encoder.
    """
    name, equals, text = argument.partition("=")
    path = Path(text if equals else argument)
    file = _newest(path) if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected the folder of a run, a checkpoint or an encoder file")
    if not equals:
        name = path.name if path.is_dir() else path.parent.name
    if _is_checkpoint(file):
        return _checkpoint_encoder(name, file, preprocessed_root)
    try:
        encoder = load_pretrained(file)
    except (EncoderFileError, ValueError) as error:
        raise InputError(str(error)) from error
    if encoder.input_channels != 1:
        raise InputError(f"{file}: an encoder of {encoder.input_channels} channels; the probe needs one channel")
    configuration = encoder.details.get("configuration") or {}
    normalisation = _normalisation(encoder.spacing, encoder.details.get("normalisation"))
    return TrainedEncoder(name, encoder, int(configuration.get("seed", 0)), normalisation)


def preset_encoder(preset: str, recipe: str) -> TrainedEncoder:
    """An encoder without weights, which only says what random encoders are built with."""
    configuration = Configuration.from_dict(load_preset(preset, recipe))
    encoder = Encoder({}, configuration.encoder_settings, configuration.topology.strides)
    return TrainedEncoder(RANDOM, encoder, 0, None)


def random_arms(trained: Sequence[TrainedEncoder]) -> dict[str, str]:
    """The arm of random encoders that is the floor of each architecture, in the order of the encoders.

    Returns:
        Names by :attr:`TrainedEncoder.architecture`: `random`, then `random as NAME` for further architectures.
    """
    names: dict[str, str] = {}
    for arm in trained:
        names.setdefault(arm.architecture, f"{RANDOM} as {arm.name}" if names else RANDOM)
    return names


def collection_normalisation(name: str, preprocessed_root: Path) -> Normalisation:
    """The normalisation of a preprocessed collection, given by its name or its folder.

    Raises:
        InputError: when it is not preprocessed.
    """
    for folder in (preprocessed_root / name / FOLDER, Path(name) / FOLDER, Path(name)):
        if (folder / INDEX).is_file():
            header = json.loads((folder / INDEX).read_text())
            normalisation = _normalisation(header["spacing"], header["normalisation"])
            if normalisation is not None:
                return normalisation
    raise InputError(
        f"{preprocessed_root / name / FOLDER / INDEX}: missing or without a normalisation; expected a collection that "
        "swinfuse_pretrain has preprocessed"
    )


def _newest(folder: Path) -> Path:
    encoder, checkpoint = folder / ENCODER_FILE, folder / CHECKPOINT
    if not checkpoint.is_file() or (encoder.is_file() and encoder.stat().st_mtime >= checkpoint.stat().st_mtime):
        return encoder
    return checkpoint


def _is_checkpoint(file: Path) -> bool:
    try:
        content = load_torch_file(file)
    except TorchFileError as error:
        raise InputError(str(error)) from error
    return isinstance(content, dict) and content.get("format") == FORMAT != ENCODER_FORMAT


def _checkpoint_encoder(name: str, file: Path, preprocessed_root: Path | None) -> TrainedEncoder:
    state = load_checkpoint(file)
    configuration = state.configuration
    encoder = Encoder(
        weights=pretrained(state.network_weights),
        settings=configuration.encoder_settings,
        strides=configuration.topology.strides,
        spacing=tuple(state.spacing),
        collection=state.collection,
        path=str(file),
    )
    normalisation = None
    if preprocessed_root is not None:
        index = preprocessed_root / state.collection["name"] / FOLDER / INDEX
        header = json.loads(index.read_text()) if index.is_file() else {}
        # The folder may have been preprocessed again, with other intensities.
        same_ct = header.get("ct_intensities") == configuration.ct_intensities
        if header.get("hash") == state.collection["hash"] and same_ct:
            normalisation = _normalisation(header["spacing"], header["normalisation"])
    return TrainedEncoder(name, encoder, configuration.seed, normalisation)


def _normalisation(spacing: Sequence[float] | None, content: dict[str, Any] | None) -> Normalisation | None:
    if spacing is None or not content:
        return None
    z, y, x = (float(distance) for distance in spacing)
    return Normalisation((z, y, x), dict(content.get("ct", {})), bool(content.get("mr_use_mask", False)))
