"""Learning rate and weight of density matching as functions of the step, without state."""

from __future__ import annotations

import math

from pretraining.configuration import Configuration


def learning_rate(step: int, configuration: Configuration) -> float:
    """Linear warm-up, then a cosine decay that would be zero at the step after the last one."""
    warmup = min(configuration.warmup_steps, configuration.steps - 1)
    if step < warmup:
        return configuration.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(configuration.steps - warmup, 1)
    return configuration.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def density_weight(step: int, configuration: Configuration) -> float:
    """Rises linearly to its full value: features that are still random must not be matched with full weight."""
    if configuration.density_warmup_steps == 0:
        return configuration.density_weight
    return configuration.density_weight * min((step + 1) / configuration.density_warmup_steps, 1.0)
