import pytest
import torch

from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture
from nnunetv2_swinfuse.architecture.transfer import transfer_encoder
from nnunetv2_swinfuse.architecture.weight_decay import decays
from nnunetv2_swinfuse.training.pretrained_part import pretrained_layers
from nnunetv2_swinfuse.training.weight_changes import relative_changes

from .workshop import SETTINGS, publish_encoder


def test_each_part_has_the_change_that_was_made(tmp_path):
    encoder = publish_encoder(tmp_path / "encoder.pth")
    # Two image channels: the patch embedding is adapted, and the change is that from the adapted weights.
    network = build_network(plans_architecture([[1, 1, 1], *[[2, 2, 2]] * 3], SETTINGS), 2, 2)
    transfer_encoder(network, encoder, 2)
    names = pretrained_layers(network, 2)
    assert set(relative_changes(network, encoder, 2, names).values()) == {0.0}
    factors = {"patch_embed.": 1.5, "encoder.domain_invariance.": -1.0, "encoder.stages.0.": 0.75}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            factor = [factors[prefix] for prefix in factors if name.startswith(prefix)]
            # New layers are not counted, however far they move, nor are gains and biases.
            if factor and not decays(name, parameter):
                parameter.add_(100.0)
            else:
                parameter.mul_(factor[0] if factor else 1.0 if name in names else 100.0)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    changes = relative_changes(network, encoder, 2, names)
    assert changes == {
        "patch embedding": pytest.approx(0.5),
        "Domain Invariance Module": pytest.approx(2.0),
        "encoder stage 0": pytest.approx(0.25),
        "encoder stage 1": 0.0,
    }
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_the_module_starts_at_its_scale(tmp_path):
    encoder = publish_encoder(tmp_path / "encoder.pth")
    network = build_network(plans_architecture([[1, 1, 1], *[[2, 2, 2]] * 3], SETTINGS), 1, 2)
    transfer_encoder(network, encoder)
    network.encoder.domain_invariance.scale_update(0.25)
    changes = relative_changes(network, encoder, 1, pretrained_layers(network, 2), dim_scale=0.25)
    assert set(changes.values()) == {0.0}
