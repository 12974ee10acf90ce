import pytest
import torch

from nnunetv2_swinfuse.host_copies import send
from tests.fake_cuda import CUDA, HiddenRead, fake_cuda


def test_values_are_converted_and_stay_where_they_are_on_the_cpu():
    values = torch.arange(5)
    sent = send(values, torch.device("cpu"), torch.float64)
    assert sent.dtype == torch.float64
    assert sent.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert send(values, torch.device("cpu")) is values


def test_the_host_does_not_wait_for_a_gpu():
    values = torch.arange(5, dtype=torch.float64)
    with fake_cuda():
        sent = send(values, CUDA, torch.float32)
        assert (sent.device, sent.dtype, sent.shape) == (CUDA, torch.float32, values.shape)
        with pytest.raises(HiddenRead, match="copies a tensor to CUDA"):
            values.to(CUDA)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_are_queued_in_order_and_keep_their_values():
    device = torch.device("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        copies = [send(torch.full((1000,), float(number)), device) for number in range(50)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [copy.unique().tolist() for copy in copies] == [[float(number)] for number in range(50)]
