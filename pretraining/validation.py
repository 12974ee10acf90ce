"""Validation of a pretraining run: the same crops and views each time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pretraining.collections.collection import DOMAINS
from pretraining.configuration import Configuration
from pretraining.model import PretrainingModel
from pretraining.monitoring.panels import draw_reconstruction
from pretraining.monitoring.probes import FeatureProbes
from pretraining.objective import evaluate
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessed.crops import CropDataset
from pretraining.processes import SINGLE_PROCESS, Processes
from pretraining.token_statistics import DensityAverages


@torch.no_grad()
def validate(
    model: PretrainingModel,
    collection: PreprocessedCollection,
    configuration: Configuration,
    device: torch.device,
    step: int,
    averages: DensityAverages,
    panels: Path,
    processes: Processes = SINGLE_PROCESS,
) -> dict[str, float]:
    """Means of losses and health measures over the same validation crops and views each time, and a picture of one.

    Crops are encoded as single images, as in fine-tuning; only the measures of pairs are of pairs.

    Args:
        model: the model, not wrapped.
        collection: the preprocessed volumes.
        configuration: settings of the run.
        device: where the model is.
        step: steps taken so far, for the picture.
        averages: running averages of the density loss.
        panels: folder of the pictures, one per validation.
        processes: those that train together; all must call this, each evaluates its part of every batch.

    Returns:
        Means by name, as :attr:`Evaluation.scalars` and the probes name them. The model is left in evaluation mode.
    """
    model.eval()
    crops = CropDataset(
        collection, "validation", configuration.crop_size, configuration.batch_size,
        seed=configuration.seed, foreground_share=1.0, steps=configuration.validation_batches,
        samples=processes.samples(configuration.batch_size), domains=configuration.modalities,
    )  # fmt: skip
    values: dict[str, list[float]] = defaultdict(list)
    probes = FeatureProbes()
    for index in range(len(crops)):
        batch = to_device(crops[index], device)
        evaluation = evaluate(model, batch, configuration, index, averages, True, processes)
        probes.add(model, batch)
        for name, value in evaluation.scalars().items():
            values[name].append(float(value))
        if index == 0 and processes.first:
            images = evaluation.reconstruction_panels()
            draw_reconstruction(panels / f"step_{step:07d}.png", images, f"validation, step {step}")
    # Some are not measured on every batch: the difference between the blocks' attention needs co-located crops.
    return {**{name: fmean(measured) for name, measured in values.items()}, **probes.results()}


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves the crops to the device. The rest stays, since reading it there would make the host wait in every step."""
    return {
        name: value.to(device, non_blocking=True) if name.upper() in DOMAINS else value for name, value in batch.items()
    }
