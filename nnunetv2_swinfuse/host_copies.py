"""Copies of host tensors, such as random draws, to a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The values on a device. The host does not wait for the copy, nor for the GPU's earlier work.

    `values.to("cuda")` waits until the GPU has finished all queued work, because the source may change afterwards.
    From pinned memory the copy is queued like any other work; PyTorch keeps the pinned tensor until then.

    Args:
        values: any shape, on the CPU or on `device`; must not be pinned memory that the caller changes later.
        device: where to.
        dtype: to convert to; unchanged if None.
    """
    values = values if dtype is None else values.to(dtype)
    if device.type == "cuda" and values.device.type == "cpu" and torch.cuda.is_available():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
