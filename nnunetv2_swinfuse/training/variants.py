"""The training lengths that nnU-Net's users know, as data; behaviour is configuration, not subclassing."""

from __future__ import annotations

from nnunetv2_swinfuse.training.trainer import (
    nnUNetTrainerSwinFUSE,
    nnUNetTrainerSwinFUSEFrozen,
    nnUNetTrainerSwinFUSEScratch,
)

LENGTHS = {
    "1epoch": 1,
    "5epochs": 5,
    "10epochs": 10,
    "20epochs": 20,
    "50epochs": 50,
    "100epochs": 100,
    "250epochs": 250,
}

VARIANTS: dict[str, type[nnUNetTrainerSwinFUSE]] = {
    f"{base.__name__}_{suffix}": type(
        f"{base.__name__}_{suffix}",
        (base,),
        {"__module__": __name__, "__doc__": f"{base.__name__} for {suffix}.", "length": epochs},
    )
    for base in (nnUNetTrainerSwinFUSE, nnUNetTrainerSwinFUSEFrozen, nnUNetTrainerSwinFUSEScratch)
    for suffix, epochs in LENGTHS.items()
}
# Importable by name, as pickling by spawned workers needs.
globals().update(VARIANTS)
