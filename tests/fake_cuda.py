"""Code for CUDA run without a GPU: tensors without values on the device `cuda`, and failures where it would wait.

PyTorch's FakeTensorMode knows shapes, types and devices of CUDA tensors, and raises where one operation mixes devices.
Ordinary tensors on the CPU stay ordinary here, so that random draws on the host have values. What a GPU's host would
wait for raises :class:`HiddenRead`: values that are read (`.item()`, `int(tensor)`, `if tensor`), copies to the CPU,
shapes that depend on values (boolean indexing, `nonzero`), copies from the CPU without `non_blocking`. Not seen is
what kernels wait for inside.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# An index is needed: asking for the current one would look for a driver.
CUDA = torch.device("cuda:0")
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.equal.default,
}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


class HiddenRead(AssertionError):  # noqa: N818 - what it is, not that it is an error
    """A value of a CUDA tensor was read on the host."""


class _Cuda(TorchDispatchMode):
    """Runs what concerns CUDA on fake tensors and the rest on ordinary ones.

    Args:
        allowed: files (ends of their paths) whose reads are answered with 0.
    """

    def __init__(self, allowed: Sequence[str] = ()):
        super().__init__()
        self.allowed = tuple(allowed)
        self.reads: list[str] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        on_cuda = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == "cuda"]
        if on_cuda and _reads(func, args, kwargs):
            return self._answer(func, on_cuda[0])
        if _waiting_copy(func, args, kwargs):
            self._answer(func, args[0])
        if on_cuda or any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def _answer(self, func: Callable[..., Any], tensor: Tensor) -> Any:
        frame = sys._getframe()
        # Who called PyTorch.
        while not self._is_allowed(frame) and frame.f_back is not None:
            if frame.f_code.co_filename != __file__ and "/torch/" not in frame.f_code.co_filename:
                break
            frame = frame.f_back
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if not self._is_allowed(frame):
            what = "copies a tensor to CUDA" if tensor.device.type == "cpu" else "reads a CUDA tensor"
            raise HiddenRead(f"{func} {what} of shape {tuple(tensor.shape)} at {place}")
        self.reads.append(place)
        if tensor.device.type == "cpu":
            return None
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0
        with unset_fake_temporarily():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)

    def _is_allowed(self, frame: Any) -> bool:
        return frame.f_code.co_filename.endswith(self.allowed) if self.allowed else False


def _reads(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if func in READS:
        return True
    if func in INDEXING:
        masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype == torch.bool and i.device.type == "cuda"]
        # Filling with one value is done without positions.
        return bool(masks) and (func is torch.ops.aten.index.Tensor or args[2].numel() != 1)
    if func is torch.ops.aten._to_copy.default:
        device = kwargs.get("device")
        return device is not None and device.type == "cpu"
    return func is torch.ops.aten.copy_.default and args[0].device.type == "cpu"


def _waiting_copy(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the host waits until the GPU has finished all earlier work and the copy from the CPU."""
    if func is torch.ops.aten._to_copy.default:
        device = kwargs.get("device")
        to_cuda = device is not None and device.type == "cuda" and args[0].device.type == "cpu"
        return to_cuda and not kwargs.get("non_blocking", False)
    if func is torch.ops.aten.copy_.default and args[0].device.type == "cuda" and args[1].device.type == "cpu":
        return not (len(args) > 2 and args[2])
    return False


@contextmanager
def fake_cuda(allowed: Sequence[str] = ()) -> Iterator[list[str]]:
    """Within, `device="cuda:0"` works without a GPU, also autocast, gradient scaling and `Tensor.backward`.

    Args:
        allowed: ends of the paths of files that may read values, such as another package's; they are told 0.

    Yields:
        Where the allowed files did so.
    """
    mode = _Cuda(allowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(torch.Tensor, "backward", backward)
        patch.setattr(nn.Module, "to", _module_to)
        with FakeTensorMode(allow_non_fake_inputs=True), mode:
            yield mode.reads


def backward(loss: Tensor) -> None:
    """Adds the gradients of a scalar to its leaves: PyTorch's engine asks a driver for streams, this walk does not."""
    waiting: dict[Any, int] = defaultdict(int)
    seen = {loss.grad_fn}
    nodes = [loss.grad_fn]
    while nodes:
        for following, _ in nodes.pop().next_functions:
            if following is None:
                continue
            waiting[following] += 1
            if following not in seen:
                seen.add(following)
                nodes.append(following)
    gradients: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given = gradients.pop(node, {})
            if hasattr(node, "variable"):
                _accumulate(node.variable, given[0]) if given else None
                continue
            results: Any = ()
            if given:
                count = len(node._input_metadata)
                inputs = [given.get(number) for number in range(count)]
                results = node.apply(*inputs) if hasattr(node, "apply") else node(*inputs)
                results = results if isinstance(results, tuple) else (results,)
            for number, (following, slot) in enumerate(node.next_functions):
                if following is None:
                    continue
                result = results[number] if number < len(results) else None
                if result is not None:
                    # As the engine does: broadcasting and autocast are undone here.
                    expected = following._input_metadata[slot]
                    result = result.sum_to_size(expected.shape).to(expected.dtype)
                    before = gradients[following].get(slot)
                    gradients[following][slot] = result if before is None else before + result
                waiting[following] -= 1
                if not waiting[following]:
                    ready.append(following)


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    leaf.grad = gradient.to(leaf.dtype) if leaf.grad is None else leaf.grad + gradient


def _module_to(module: nn.Module, device: torch.device) -> nn.Module:
    """`Module.to(device)` also where a module is registered twice, as in nnU-Net's blocks: PyTorch's fails there."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(
                        parameter.detach().to(device, non_blocking=True), parameter.requires_grad
                    )
                part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device, non_blocking=True)
    return module
