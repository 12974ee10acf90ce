"""Autocast, as nnU-Net uses it on GPUs, and torch.compile, both on the CPU: one step of training each."""

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from nnunetv2_swinfuse.training.optimisation import build_optimizer
from nnunetv2_swinfuse.training.pretrained_part import pretrained_layers, set_frozen
from nnunetv2_swinfuse.training.settings import FineTuningSettings
from tests.nnunetv2_swinfuse.training.workshop import RESIDUAL, SETTINGS, make_trainer

pytestmark = pytest.mark.slow

STRIDES = [[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2]]


@pytest.fixture(params=[SETTINGS, RESIDUAL], ids=["swin", "resenc"])
def network(request):
    torch.manual_seed(0)
    network = build_network(plans_architecture(STRIDES, request.param, drop_path_rate=0.1), 1, 3, True)
    for name, parameter in network.named_parameters():
        if name.endswith("norm.weight") and not parameter.any():
            # Residual blocks begin as their shortcuts, and their convolutions without a gradient.
            torch.nn.init.ones_(parameter)
    return network


def step(network, precision=None):
    """nnU-Net's step: its loss with deep supervision inside autocast, the scaled loss's gradient, clipping, AdamW."""
    generator = torch.Generator().manual_seed(0)
    image = 100 * torch.randn(2, 1, 16, 24, 24, generator=generator)
    loss_function = DeepSupervisionWrapper(
        DC_and_CE_loss(
            {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            dice_class=MemoryEfficientSoftDiceLoss,
        ),
        np.array([4, 2, 0]) / 6,
    )
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        outputs = network(image)
        targets = [torch.randint(0, 3, (2, 1, *o.shape[2:]), generator=generator).float() for o in outputs]
        loss = loss_function(outputs, targets)
    optimizer = build_optimizer(network, FineTuningSettings())
    scaler = torch.amp.GradScaler("cpu", enabled=precision is not None)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    return loss.item(), outputs[0]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_near_full_precision(network, precision):
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.eval()
    network.decoder.deep_supervision = True
    full, _ = step(network)
    network.load_state_dict(start)
    network.zero_grad(set_to_none=True)
    loss, output = step(network, precision)
    assert output.dtype == precision
    assert loss == pytest.approx(full, rel=0.02)
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    # The heads of the coarsest resolution have weight 0 in the loss.
    assert not [name for name, gradient in gradients.items() if not gradient.any() and ".seg_layers.0." not in name]


def test_a_compiled_network_trains_as_the_eager_one_and_can_be_frozen():
    """With aot_eager: the whole of torch.compile but the code generator, which takes minutes on a CPU."""
    network = SwinFUSEUNet(1, 3, True, **plans_architecture(STRIDES[:3], SETTINGS)["arch_kwargs"])
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    eager, _ = step(network)
    expected = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.load_state_dict(start)
    network.zero_grad(set_to_none=True)
    compiled = torch.compile(network, backend="aot_eager")
    assert step(compiled)[0] == pytest.approx(eager, rel=1e-5)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)
    layers = pretrained_layers(network, 1)
    for frozen in (True, False):
        set_frozen(network, layers, frozen)
        network.zero_grad(set_to_none=True)
        before = network.patch_embed.proj.weight.clone()
        step(compiled)
        assert torch.equal(before, network.patch_embed.proj.weight) == frozen
        assert (network.encoder.stages[0].merging.reduction.weight.grad is None) == frozen


def test_compile_on_a_cpu_is_left_to_nnunet(published, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_compile", "t")
    trainer = make_trainer()
    trainer.initialize()
    assert isinstance(trainer.network, SwinFUSEUNet)
    assert "torch.compile disabled because device is CPU" in capsys.readouterr().out
