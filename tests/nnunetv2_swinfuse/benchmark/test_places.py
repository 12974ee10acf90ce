import pytest

from nnunetv2_swinfuse.benchmark import places
from nnunetv2_swinfuse.benchmark.places import Place, share_machine, whole_machine
from nnunetv2_swinfuse.errors import BenchmarkError


def test_workers_share_the_cores_without_overlap(monkeypatch):
    monkeypatch.setattr(places, "available_cores", lambda: [2, 3, 6, 7, 9])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share_machine("cpu", 2) == [Place(2, (2, 3)), Place(2, (6, 7))]
    # One worker is not bound to cores.
    assert share_machine("cpu", 1) == [whole_machine("cpu")] == [Place(5)]
    # More workers than cores: each has one, and some share it.
    assert [place.cores for place in share_machine("cpu", 7)] == [(2,), (3,), (6,), (7,), (9,), (2,), (3,)]


def test_the_users_number_of_threads_is_a_limit(monkeypatch):
    monkeypatch.setattr(places, "available_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert whole_machine("cpu") == Place(1)
    assert share_machine("cpu", 2) == [Place(1, (0, 1)), Place(1, (2, 3))]


def test_workers_get_a_gpu_each(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    shared = share_machine("cuda", 4)
    assert [place.gpu for place in shared] == ["3", "5", "3", "5"]
    assert shared[1].variables() == {"CUDA_VISIBLE_DEVICES": "5"}
    # With one GPU there is nothing to choose.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert share_machine("cuda", 2) == [Place(), Place()]
    assert Place().variables() == {}


def test_a_machine_without_a_gpu_is_named(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BenchmarkError, match="PyTorch sees no GPU here"):
        share_machine("cuda", 1)
