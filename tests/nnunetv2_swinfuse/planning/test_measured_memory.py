import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from nnunetv2_swinfuse.planning.measured_memory import (
    CudaAutocast,
    StorageTracker,
    meta_step_memory,
    segmentation_loss,
)

pytestmark = pytest.mark.slow

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
ARCHITECTURE = plans_architecture(
    STRIDES, EncoderSettings(feature_size=12, depths=(1,), num_heads=(2,), window_size=4), drop_path_rate=0.1
)["arch_kwargs"]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")  # convolutions allocate scratch memory for each thread
def test_the_tracker_sees_what_the_allocator_gives():
    torch.manual_seed(0)
    network = SwinFUSEUNet(1, 3, True, **ARCHITECTURE)
    loss = segmentation_loss(STRIDES)
    image, target = torch.zeros(2, 1, 24, 24, 24), [torch.zeros(2, 1, size, size, size) for size in (24, 12)]

    def step():
        network.zero_grad(set_to_none=True)
        loss(network(image), target).backward()

    tracker = StorageTracker()
    with tracker:
        step()
    step()
    network.zero_grad(set_to_none=True)
    with profile(profile_memory=True) as profiler:
        step()
    current = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    # Kernels also allocate inside, which only the allocator sees.
    assert 0.95 * peak < tracker.peak < 1.03 * peak


def test_freed_tensors_are_no_longer_counted():
    tracker = StorageTracker()
    with tracker:
        first = torch.empty(1024, device="meta")
        view = first[:10]
        assert tracker.current == 4096
        del first
        assert tracker.current == 4096
        del view
        assert tracker.current == 0
        torch.empty(1, device="meta")
    assert tracker.peak == 4096


def test_autocast_casts_like_cudas():
    linear = torch.nn.Linear(4, 4, device="meta")
    x = torch.empty(2, 4, device="meta")
    with CudaAutocast():
        assert F.linear(x, linear.weight, linear.bias).dtype == torch.float16
        assert F.layer_norm(x.half(), (4,)).dtype == torch.float32
        assert (x + x).dtype == torch.float32


def test_deep_supervision_halves_the_weight_of_each_resolution_and_leaves_the_last_out():
    weights = segmentation_loss([[1, 1, 1], *[[2, 2, 2]] * 4]).weight_factors
    assert weights == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])


def test_memory_grows_with_the_batch():
    one, two = (meta_step_memory(ARCHITECTURE, (24, 24, 24), batch, 1, 3) for batch in (1, 2))
    assert 1.5 * one < two < 2 * one
