"""Windows and mirrorings counted by hand for known patches and shapes."""

from types import SimpleNamespace

import pytest
import torch

from nnunetv2_swinfuse.inference import estimate
from nnunetv2_swinfuse.inference.estimate import BUFFERS, available_memory, estimate_case, seconds_per_pass


def predictor(patch=(16, 24, 24), spacing=(3.0, 2.0, 1.5), order=(0, 1, 2), axes=(0, 1), folds=2, heads=2):
    return SimpleNamespace(
        plans_manager=SimpleNamespace(transpose_forward=order),
        configuration_manager=SimpleNamespace(spacing=spacing, patch_size=patch),
        label_manager=SimpleNamespace(num_segmentation_heads=heads),
        tile_step_size=0.5,
        use_mirroring=True,
        allowed_mirroring_axes=axes,
        list_of_parameters=[{}] * folds,
        device=torch.device("cpu"),
        network=torch.nn.Conv3d(1, 2, 1),
    )


@pytest.mark.parametrize(
    ("size", "spacing", "settings", "shape", "passes"),
    [
        # Steps of 8, 12 and 12 voxels: 2 x 1 x 2 windows; four mirrorings of two axes; two folds.
        ((20, 24, 28), (3.0, 2.0, 1.5), {}, (20, 24, 28), 2 * 1 * 2 * 4 * 2),
        ((10, 24, 28), (6.0, 2.0, 1.5), {}, (20, 24, 28), 2 * 1 * 2 * 4 * 2),
        ((16, 24, 24), (3.0, 2.0, 1.5), {"axes": None, "folds": 1}, (16, 24, 24), 1),
        ((2, 3, 4), (3.0, 2.0, 1.5), {"axes": None, "folds": 1}, (2, 3, 4), 1),
        ((24, 28, 20), (2.0, 1.5, 3.0), {"order": (2, 0, 1)}, (20, 24, 28), 2 * 1 * 2 * 4 * 2),
        # A 2D configuration predicts slice by slice.
        ((7, 24, 24), (3.0, 2.0, 1.5), {"patch": (24, 24), "spacing": (2.0, 1.5), "folds": 1, "axes": (0,)},
         (7, 24, 24), 7 * 2),
    ],
    ids=["plain", "resampled", "one window", "smaller than the patch", "transposed", "2D"],
)  # fmt: skip
def test_passes_and_shape(size, spacing, settings, shape, passes):
    counted = estimate_case(size, spacing, 1, predictor(**settings))
    assert (counted.shape, counted.passes) == (shape, passes)


def test_memory_by_hand():
    """Bytes a voxel, for one channel and two heads."""
    small = estimate_case((32, 48, 48), (3.0, 2.0, 1.5), 1, predictor()).memory
    voxels = 32 * 48 * 48
    # Not resampled: the file's image, its array, float32 and float64; image and logits with their sums; logits, mask.
    assert small == int(1.1 * (BUFFERS + voxels * (24 + (8 + 4 * 3) + (2 * 2 + 8))))
    # To twice the slices: also float64 and float32 after resampling, float64 of all logits, and logits as before.
    finer = estimate_case((32, 48, 48), (6.0, 2.0, 1.5), 1, predictor()).memory
    assert finer == int(1.1 * (BUFFERS + voxels * (24 + 2 * 16 + 2 * (8 + 4 * 3) + 2 * (2 * 2 + 2 * 8 + 2) + 8)))


def test_memory_grows_with_voxels_and_heads():
    fixed = 1.1 * BUFFERS
    small = estimate_case((32, 48, 48), (3.0, 2.0, 1.5), 1, predictor()).memory - fixed
    twice = estimate_case((64, 48, 48), (3.0, 2.0, 1.5), 1, predictor()).memory - fixed
    assert twice == pytest.approx(2 * small, abs=2)
    assert estimate_case((32, 48, 48), (3.0, 2.0, 1.5), 1, predictor(heads=50)).memory - fixed > 5 * small


def test_cached_files_of_a_container_count_as_free(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n",
        "/sys/fs/cgroup/memory.max": "8000000000\n",
        "/sys/fs/cgroup/memory.current": "7900000000\n",
        "/sys/fs/cgroup/memory.stat": "anon 900000000\ninactive_file 6500000000\nactive_file 500000000\n",
    }
    monkeypatch.setattr(estimate.Path, "read_text", lambda path: files[str(path)])
    assert available_memory() == 6_600_000_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert available_memory() == 61_440_000_000


def test_free_memory_and_seconds_are_measured(monkeypatch):
    assert seconds_per_pass(predictor(), 1) > 0
    free = available_memory()
    assert free is None or free > 0
    monkeypatch.setattr(estimate.Path, "read_text", lambda _: (_ for _ in ()).throw(OSError))
    assert available_memory() is None
