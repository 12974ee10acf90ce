"""All randomness of a step is a function of the run's seed and the step, so a resumed run repeats it exactly.

No generator's state is kept between steps: (seed, step) is the state of the sampler and of every generator.
"""

from __future__ import annotations

import numpy as np
import torch


def derived_seed(*keys: int) -> int:
    """A 63-bit seed derived from a tuple of non-negative integers."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def step_generator(seed: int, step: int, purpose: int) -> torch.Generator:
    """A CPU generator for one purpose of one step."""
    return torch.Generator().manual_seed(derived_seed(seed, step, purpose))


def sample_generators(seed: int, step: int, purpose: int, samples: range) -> list[torch.Generator]:
    """A CPU generator for each sample of a step, by its index in the batch of all processes.

    Two processes with half of the batch each therefore draw the same as one process with the whole batch.
    """
    return [torch.Generator().manual_seed(derived_seed(seed, step, purpose, sample)) for sample in samples]
