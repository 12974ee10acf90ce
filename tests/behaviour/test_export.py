"""The network in torch.compile and as ONNX."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from tests.nnunetv2_swinfuse.architecture.networks import HALVINGS, build

pytestmark = pytest.mark.slow


def compiled(module):
    """Traced as on CUDA, up to the kernels; counts the graphs: one, unless there are breaks or recompilations."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(module, backend=counter, fullgraph=True), counter


def test_one_graph_for_all_steps_with_the_same_gradients(settings):
    # Shifted, padded and clamped windows.
    network = build(HALVINGS[:3], settings, deep_supervision=True).double()
    traced, counter = compiled(network)
    for _ in range(3):
        image = torch.randn(2, 1, 24, 16, 4, dtype=torch.float64)
        gradients = []
        for version in (network, traced):
            network.zero_grad()
            sum(output.square().mean() for output in version(image)).backward()
            gradients.append([parameter.grad.clone() for parameter in network.parameters()])
        for eager, result in zip(*gradients, strict=True):
            torch.testing.assert_close(result, eager)
    assert counter.frame_count == 1


def test_stochastic_depth_and_checkpointing_do_not_break_a_stage(settings):
    network = build(HALVINGS, settings, drop_path_rate=0.3, checkpointing=True).train()
    stage, counter = compiled(network.encoder.stages[0])
    for _ in range(3):
        stage(torch.randn(2, 6, 5, 8, 12, requires_grad=True)).sum().backward()
    assert counter.frame_count == 1


def test_onnx_gives_the_same_logits(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    settings = EncoderSettings(6, (2,), (1,), window_size=3, domain_invariance={"layers": 1, "max_cells": 64})
    network: SwinFUSEUNet = build([[1, 1, 1], [2, 2, 2], [2, 2, 2]], settings).eval()
    image = torch.randn(1, 1, 16, 12, 8)
    torch.onnx.export(network, (image,), tmp_path / "network.onnx", dynamo=True)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(result), network(image), atol=1e-4, rtol=1e-4)
