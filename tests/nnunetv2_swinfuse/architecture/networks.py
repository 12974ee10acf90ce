"""Tiny encoders and networks."""

from __future__ import annotations

from dataclasses import replace

import torch

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture
from nnunetv2_swinfuse.architecture.tensor_names import pretrained_decoder

HALVINGS = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


def build(strides, settings, input_channels=1, classes=3, deep_supervision=False, **kwargs):
    architecture = plans_architecture(strides, settings, **kwargs)
    torch.manual_seed(0)
    network = build_network(architecture, input_channels, classes, deep_supervision)
    # Biases and norms start at constants that would hide mistakes in transfer and attention.
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def encoder_of(network) -> Encoder:
    weights = {
        name: tensor.clone()
        for name, tensor in network.state_dict().items()
        if name.startswith(("patch_embed.", "encoder."))
    }
    channels = next(network.patch_embed.parameters()).shape[1]
    return Encoder(weights, network.settings, network.topology.strides, input_channels=channels)


def whole(network) -> Encoder:
    """An encoder with the decoder of the same network, as after pretraining of the whole network."""
    tensors = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    return replace(encoder_of(network), decoder_weights=pretrained_decoder(tensors))


def fresh(strides, settings, input_channels=1, **kwargs):
    """A network whose parameters are all 0.123, to recognise those that transfer has not changed."""
    network = build(strides, settings, input_channels, **kwargs)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.123)
    return network


def features(network, image):
    with torch.no_grad():
        return network.eval().encoder(network.patch_embed(image))
