"""Scalars of training steps that stay on the device until the values of many steps are read at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class UnreadScalars:
    """Scalars of the last steps. Adding does not wait for the device; reading waits once for all of them.

    Args:
        every: number of steps after which reading is due.
    """

    def __init__(self, every: int):
        self._every = every
        self._steps: list[tuple[int, list[str]]] = []
        self._values: list[Tensor] = []

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Adds the scalars of a step, all on one device."""
        self._steps.append((step, list(values)))
        self._values.append(torch.stack([value.detach().float().reshape(()) for value in values.values()]))

    @property
    def due(self) -> bool:
        return len(self._steps) >= self._every

    def read(self) -> list[tuple[int, dict[str, float]]]:
        """Returns the values of all steps since the last call, in order, and clears them."""
        if not self._steps:
            return []
        numbers = iter(torch.cat(self._values).tolist())
        steps = [(step, {name: next(numbers) for name in names}) for step, names in self._steps]
        self._steps, self._values = [], []
        return steps
