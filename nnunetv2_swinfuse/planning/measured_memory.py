"""Peak memory of a training step: on a GPU as it allocates, without one by running the step on tensors without data.

Without a GPU every operation of forward and backward pass runs on PyTorch's meta tensors: shapes, types and lifetimes
are real, no memory is. A dispatch mode adds up the storages that are alive. Autocast does not know this device, so its
rules for CUDA are applied here to the functions that the network and nnU-Net's loss call, and attention runs in the
memory-efficient kernel, which keeps a log-sum-exp in place of the attention weights. What kernels allocate themselves
(cuDNN's workspaces), fragmentation and the CUDA context are not included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet

# CUDA's caching allocator hands out multiples of this.
ALLOCATION = 512
# CUDA's autocast: https://docs.pytorch.org/docs/stable/amp.html
FULL_PRECISION = {F.layer_norm, torch.softmax, F.softmax, F.log_softmax, F.cross_entropy}
HALF_PRECISION = {F.linear, F.conv3d, F.conv_transpose3d, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__}


class StorageTracker(TorchDispatchMode):
    """Adds up the storages that operations allocate, until they are freed.

    Attributes:
        current, peak: bytes, in CUDA's units of 512.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.track(leaf)
        return result

    def track(self, tensor: Tensor) -> None:
        """Counts a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = -(-storage.nbytes() // ALLOCATION) * ALLOCATION
        self._alive.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.current -= size


class CudaAutocast(TorchFunctionMode):
    """CUDA's autocast to half precision and its memory-efficient attention, for tensors on any device.

    As there, the half-precision copy of a parameter is created once and kept until the mode ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, Tensor] = {}

    def __exit__(self, *error: Any) -> None:
        self._copies.clear()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in FULL_PRECISION:
            return func(*(self._cast(a, torch.float32) for a in args), **kwargs)
        if func in HALF_PRECISION:
            return func(*(self._cast(a, torch.float16) for a in args), **kwargs)
        if func is F.scaled_dot_product_attention:
            query, key, value = (self._cast(a, torch.float16) for a in args[:3])
            return _efficient_attention(query, key, value, self._cast(kwargs.get("attn_mask"), torch.float16))
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(dtype)
        return self._copies[id(value)]


def _efficient_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        length = mask.shape[-1]
        # The kernel needs rows whose length is a multiple of 16.
        mask = F.pad(mask, (0, -length % 16))[..., :length].expand(*query.shape[:3], length)
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True)[0]


def segmentation_loss(strides: Sequence[Sequence[int]]) -> nn.Module:
    """nnU-Net's loss for labels, with its weights of deep supervision."""
    weights = np.array([1 / 2**level for level in range(max(len(strides) - 1, 1))])
    if len(weights) > 1:
        weights[-1] = 0
    loss = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    return DeepSupervisionWrapper(loss, weights / weights.sum())


def meta_step_memory(
    arch_kwargs: Mapping[str, Any], patch_size: Sequence[int], batch_size: int, input_channels: int, classes: int
) -> int:
    """Peak bytes of a training step in float16 as a GPU would allocate them, determined without one.

    Args:
        arch_kwargs: keyword arguments of :class:`SwinFUSEUNet`.
        patch_size: voxels (z, y, x).
        batch_size, input_channels, classes: as in training; classes count the background.
    """
    loss = segmentation_loss(arch_kwargs["strides"])
    with torch.device("meta"):
        network = SwinFUSEUNet(input_channels, classes, True, **arch_kwargs).train()
    tracker = StorageTracker()
    for parameter in network.parameters():
        tracker.track(parameter)
    with tracker:
        # AdamW's two moments of each parameter.
        moments = [[torch.empty_like(parameter) for parameter in network.parameters()] for _ in range(2)]
        image, target = _batch(arch_kwargs["strides"], patch_size, batch_size, input_channels, "meta")
        with CudaAutocast():
            value = loss(network(image), target)
        value.backward()
        del value
        # Its step holds one more tensor of each parameter's size for a moment: the square roots.
        roots = torch._foreach_sqrt(moments[1])
        del roots
    return tracker.peak


def cuda_step_memory(
    arch_kwargs: Mapping[str, Any],
    patch_size: Sequence[int],
    batch_size: int,
    input_channels: int,
    classes: int,
    compiled: bool = False,
    steps: int = 3,
) -> int:
    """Peak bytes of `torch.cuda.max_memory_allocated` over a few real training steps.

    Args:
        arch_kwargs, patch_size, batch_size, input_channels, classes: see :func:`meta_step_memory`.
        compiled: whether the network is compiled with torch.compile, as is nnU-Net's default on CUDA.
        steps: the first one has no optimiser state yet.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    network = SwinFUSEUNet(input_channels, classes, True, **arch_kwargs).cuda().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
    loss = segmentation_loss(arch_kwargs["strides"])
    step_network: nn.Module = torch.compile(network) if compiled else network
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(steps):
        image, target = _batch(arch_kwargs["strides"], patch_size, batch_size, input_channels, "cuda")
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda"):
            value = loss(step_network(image), target)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
    return torch.cuda.max_memory_allocated()


def _batch(
    strides: Sequence[Sequence[int]], patch_size: Sequence[int], batch_size: int, channels: int, device: str
) -> tuple[Tensor, list[Tensor]]:
    """An image and its labels at every resolution that deep supervision compares."""
    image = torch.zeros(batch_size, channels, *patch_size, device=device)
    sizes = [np.array(patch_size)]
    for stride in strides[1:-1]:
        sizes.append(sizes[-1] // np.array(stride))
    return image, [torch.zeros(batch_size, 1, *(int(s) for s in size), device=device) for size in sizes]
