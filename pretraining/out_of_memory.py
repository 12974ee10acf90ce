"""Explains out-of-memory errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.configuration import Configuration

# The residual encoder's figure is from one step on meta tensors: 17.5 GiB become 12.2 GiB with -p base in float32.
CHECKPOINTING = {"swin": "1.5 times the time, about half the memory", "resenc": "slower, a third less memory"}


@contextmanager
def explain_out_of_memory(configuration: Configuration, device: torch.device, samples: int) -> Iterator[None]:
    """Turns running out of memory into an InputError that says which settings to lower.

    Args:
        configuration: settings of the run.
        device: where the run trains.
        samples: pairs of crops per step of this process.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        crop = " x ".join(map(str, configuration.crop_size))
        checkpointing = (
            "" if configuration.checkpointing else f"--checkpointing ({CHECKPOINTING[configuration.backbone]}); "
        )
        raise InputError(
            f"{device} has too little memory for {samples} pairs of crops of {crop} voxels "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). In this order: {checkpointing}"
            f"a lower --batch_size than {configuration.batch_size}, or the same on more GPUs (-num_gpus); "
            "a smaller --crop_size; -p small"
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    # On the CPU, torch reports it as a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
