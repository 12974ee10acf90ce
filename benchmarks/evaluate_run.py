"""What a run has learned: its validation by modality over many views, and how much of the voxels its maps retain.

    python benchmarks/evaluate_run.py $nnUNet_results/CTMR/swinfuse__tiny $nnUNet_preprocessed/CTMR/swinfuse

Voxels are read off each map linearly, before the first step and after the last.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pretraining.checkpoint import CHECKPOINT, load_checkpoint
from pretraining.collections.collection import DOMAINS
from pretraining.model import PretrainingModel
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessed.crops import CropDataset
from pretraining.validation import validate

CPU = torch.device("cpu")


def linear_error(maps: list[Tensor], images: list[Tensor]) -> float:
    """L1 of voxels predicted from a map (B, C, z, y, x) by least squares, token by token.

    Fitted on three quarters of the tokens, measured on the rest.
    """
    patch = [size // tokens for size, tokens in zip(images[0].shape[2:], maps[0].shape[2:], strict=True)]
    tokens = torch.cat([m.flatten(2).transpose(1, 2).flatten(0, 1) for m in maps])
    tokens = torch.cat([tokens, torch.ones(len(tokens), 1)], 1)
    cells = []
    for image in images:
        for axis, size in enumerate(patch):
            image = image.unfold(2 + axis, size, size)
        cells.append(image.reshape(-1, torch.Size(patch).numel()))
    voxels = torch.cat(cells)
    seen = 3 * len(tokens) // 4
    solution = torch.linalg.lstsq(tokens[:seen], voxels[:seen]).solution
    return (tokens[seen:] @ solution - voxels[seen:]).abs().mean().item()


@torch.no_grad()
def retained_voxels(model: PretrainingModel, crops: CropDataset) -> dict[str, float]:
    """:func:`linear_error` of the embedding, of the Domain Invariance Module's output, and of the features."""
    maps: dict[str, list[Tensor]] = {"embedding": [], "after the DIM": [], "finest features": []}
    images = []
    for index in range(len(crops)):
        batch = crops[index]
        image = torch.cat([batch[domain.lower()] for domain in DOMAINS])
        embedding = model.patch_embed(image)
        module = model.encoder.domain_invariance
        after = embedding if module is None else module(embedding)
        maps["embedding"].append(embedding)
        maps["after the DIM"].append(after)
        maps["finest features"].append(model.encoder.features(after)[0])
        images.append(image)
    return {name: linear_error(channels, images) for name, channels in maps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run on CT and MR")
    parser.add_argument("volumes", type=Path, help="its preprocessed volumes")
    parser.add_argument("--batches", type=int, default=32, help="of validation views")
    arguments = parser.parse_args()
    state = load_checkpoint(arguments.run / CHECKPOINT)
    configuration = replace(state.configuration, validation_batches=arguments.batches)
    collection = PreprocessedCollection.open(arguments.volumes)
    torch.manual_seed(configuration.seed)
    model = PretrainingModel(configuration).eval()
    crops = CropDataset(
        collection, "validation", configuration.crop_size, configuration.batch_size,
        seed=configuration.seed, foreground_share=1.0, steps=4,
    )  # fmt: skip
    errors_by_step = {"before training": retained_voxels(model, crops)}
    model.load_state_dict(state.network_weights)
    errors_by_step[f"step {state.step}"] = retained_voxels(model, crops)
    with tempfile.TemporaryDirectory() as panels:
        means = validate(model, collection, configuration, CPU, state.step, state.averages, Path(panels))
    print(f"{arguments.batches * configuration.batch_size * 2} views of each modality, step {state.step}\n")
    print("| | CT | MR |\n| --- | --- | --- |")
    for name in ("masked_error", "masked_error_of_mean", "rotation_accuracy"):
        print(f"| {name} | " + " | ".join(f"{means[f'{name}_{domain}']:.3f}" for domain in DOMAINS) + " |")
    print("\n" + ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
    columns = list(errors_by_step["before training"])
    print(f"\n| L1 of voxels read linearly | {' | '.join(columns)} |\n| --- {'| --- ' * len(columns)}|")
    for when, errors in errors_by_step.items():
        print(f"| {when} | " + " | ".join(f"{errors[name]:.3f}" for name in columns) + " |")


if __name__ == "__main__":
    main()
