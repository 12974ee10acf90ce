"""Networks as on a GPU, without one: no tensor on the wrong device, no value that the host would wait for."""

import pytest
import torch

from nnunetv2_swinfuse.architecture import attention, windows
from tests.fake_cuda import CUDA, HiddenRead, fake_cuda
from tests.nnunetv2_swinfuse.architecture.networks import HALVINGS, build

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backbone", ["settings", "residual_settings"])
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, None])
def test_networks_run_forward_and_backward(backbone, precision, request):
    network = build(HALVINGS, request.getfixturevalue(backbone), 2, deep_supervision=True, drop_path_rate=0.2).train()
    with fake_cuda():
        network.to(CUDA)
        # Windows of 3 along axes of 20, 16 and 12 patches: shifted, padded, clamped.
        image = torch.randn(2, 2, 40, 32, 24, device=CUDA)
        with torch.autocast("cuda", dtype=precision, enabled=precision is not None):
            outputs = network(image)
        assert outputs[0].shape == (2, 3, 40, 32, 24)
        assert outputs[0].dtype == (precision or torch.float32)
        assert {output.device for output in outputs} == {CUDA}
        sum(output.float().square().mean() for output in outputs).backward()
        assert all(parameter.grad.shape == parameter.shape for parameter in network.parameters())


@pytest.mark.parametrize("backbone", ["settings", "residual_settings"])
def test_encoders_take_pairs_with_attention_weights(backbone, request):
    network = build(HALVINGS, request.getfixturevalue(backbone))
    with fake_cuda():
        network.to(CUDA)
        ct, mr = (network.patch_embed(torch.randn(2, 1, 32, 32, 32, device=CUDA)) for _ in range(2))
        pair = network.encoder.mix_pair(ct, mr, need_weights=True)
        features = network.encoder.features(pair.ct)
        assert {part.device for part in (*features, pair.mr, *pair.ct_weights, pair.ct_tokens)} == {CUDA}


def test_inference_reads_no_value(settings):
    network = build(HALVINGS, settings).eval()
    with fake_cuda():
        network.to(CUDA)
        image = torch.randn(1, 1, 32, 32, 32, device=CUDA)
        with torch.inference_mode():
            assert network(image).shape == (1, 3, 32, 32, 32)


def test_a_read_in_a_network_would_be_seen(settings, monkeypatch):
    biased = attention.biased_attention
    monkeypatch.setattr(attention, "biased_attention", lambda qkv, *a: biased(qkv * float(qkv.detach().mean()), *a))
    with fake_cuda(), pytest.raises(HiddenRead):
        build(HALVINGS, settings).to(CUDA)(torch.randn(1, 1, 32, 32, 32, device=CUDA))


def test_indices_on_the_cpu_would_be_seen(settings, monkeypatch):
    layout = windows.window_layout
    monkeypatch.setattr(attention, "window_layout", lambda *a: layout(*a[:-1], torch.device("cpu")))
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        build(HALVINGS, settings).to(CUDA)(torch.randn(1, 1, 32, 32, 32, device=CUDA))
