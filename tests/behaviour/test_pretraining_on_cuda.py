"""Training steps as on a GPU, without one: no tensor on the wrong device, no value that the host would wait for."""

import pytest
import torch

from pretraining import proxy_tasks, token_statistics
from pretraining.loop import Training
from pretraining.monitoring.scalars import UnreadScalars
from pretraining.validation import to_device
from tests.fake_cuda import CUDA, HiddenRead, fake_cuda
from tests.pretraining.synthetic import RESENC, synthetic_batch, tiny

pytestmark = pytest.mark.slow

VARIANTS = {
    "swin": {},
    "resenc": RESENC,
    "mmd": {"density_loss": "mmd"},
    "coral": {"density_loss": "coral"},
    "sliced_wasserstein": {"density_loss": "sliced_wasserstein"},
    "no_dim": {"dim": "none"},
    "mean": {"fusion": "mean"},
    "both views paired": {"second_view": "paired"},
    "pseudo-pairs": {"partner": "pseudo_pair", "random_contrast": 0.5, "distillation_weight": 1.0},
    "blocks": {"masking": "blocks"},
    "vicreg": {"contrastive_loss": "vicreg"},
    "correlation": {"contrastive_loss": "correlation", "compared_places": "visible"},
    "nt_xent": {"contrastive_loss": "nt_xent"},
    "pyramid": {"inpainting_head": "pyramid"},
    "network": {"inpainting_head": "network"},
    "CT": {"modalities": ("CT",)},
}


def train(configuration, steps):
    """Steps of a training; returns it with the unread scalars, and those of the last step."""
    batch = {
        name: values
        for name, values in synthetic_batch().items()
        if not name.startswith("mr") or "MR" in configuration.modalities
    }
    training, unread = Training.start(configuration, CUDA, None), UnreadScalars(20)
    for _ in range(steps):
        scalars = training.take_step(to_device(batch, CUDA), configuration)
        unread.add(training.step, scalars)
    return training.model, unread, scalars


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_steps_read_no_value(changes):
    configuration = tiny(**changes)
    with fake_cuda():
        model, unread, scalars = train(configuration, steps=2)
        assert scalars["total"].device == CUDA
        expected = {name: p for name, p in model.named_parameters() if p.requires_grad}
        idle = {name for name, p in expected.items() if p.grad is None}
        # Without a pair, or one modality, the density loss and its bandwidth do not exist.
        assert idle <= {name for name in expected if "domain_invariance" in name}
        assert all(p.grad.shape == p.shape for name, p in expected.items() if name not in idle)
        with pytest.raises(HiddenRead):
            unread.read()


def test_a_read_in_the_objective_would_be_seen(monkeypatch):
    accuracy = proxy_tasks.rotation_accuracy
    monkeypatch.setattr(proxy_tasks, "rotation_accuracy", lambda *a: torch.tensor(float(accuracy(*a)), device=CUDA))
    with fake_cuda(), pytest.raises(HiddenRead, match=r"test_pretraining_on_cuda\.py"):
        train(tiny(), steps=1)


def test_a_tensor_left_on_the_cpu_would_be_seen(monkeypatch):
    foreground = token_statistics.foreground_tokens
    monkeypatch.setattr(
        token_statistics, "foreground_tokens", lambda *a: torch.zeros(foreground(*a).shape, dtype=torch.bool)
    )
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        train(tiny(), steps=1)
