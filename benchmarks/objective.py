"""What a pretraining objective does to the features that are deployed: divergence, rank, and leaks through partners.

    python benchmarks/objective.py $nnUNet_preprocessed/CTMR/swinfuse --steps 260 --seeds 0 1 2

Each variant is trained with the same crops and validated before the first and after the last step. Columns: JSD / ln 2
between CT and MR tokens of single images and of pairs, with the floor between crops of one modality; effective rank of
each stage relative to its channels; and in how many of 16 crops the two views of an MR crop find each other by their
deepest features, when both attend to the same partner, to different ones, or to none.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F

from pretraining.configuration import Configuration
from pretraining.loop import train
from pretraining.model import PretrainingModel
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessed.crops import CropDataset
from pretraining.preset_files import load_preset
from pretraining.randomness import sample_generators
from pretraining.validation import validate
from pretraining.view_pairs import two_views

CPU = torch.device("cpu")
CROPS = 16
SHOWN = ("divergence", "floor", "rank", "masked_error", "rotation_accuracy", "same", "other", "single")
# What earlier versions did, as far as today's settings express it: their standardisation was detached, too.
BEFORE: dict[str, Any] = {
    "second_view": "paired", "complementary_masks": False, "contrastive_loss": "nt_xent", "density_levels": ("paired",),
    "variance_weight": 0.0, "covariance_weight": 0.0, "corrupted_share": 0.3, "masking": "blocks",
    "inpainting_head": "pyramid", "visible_weight": 0.3, "intact_second_views": 0.0,
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "before": ("inpainting_first", BEFORE),
    "single-image view": ("inpainting_first", {**BEFORE, "second_view": "single_image"}),
    "and densities at all levels": (
        "inpainting_first",
        {**BEFORE, "second_view": "single_image", "density_levels": ("paired", "single_image", "stages")},
    ),
    "now, without variance and covariance": (
        "inpainting_first",
        {"variance_weight": 0.0, "covariance_weight": 0.0, "contrastive_loss": "nt_xent"},
    ),
    "now, NT-Xent": ("inpainting_first", {"contrastive_loss": "nt_xent"}),
    "now, VICReg": (
        "inpainting_first",
        {"contrastive_loss": "vicreg", "compared_places": "all", "intact_second_views": 0.0},
    ),
    "now": ("inpainting_first", {}),
}


@torch.no_grad()
def top_1(
    model: PretrainingModel, collection: PreprocessedCollection, configuration: Configuration
) -> dict[str, float]:
    """Share of MR crops whose second view is the one most similar to the first, by what the views attend to."""
    crops = CropDataset(
        collection, "validation", configuration.crop_size, CROPS, seed=1, foreground_share=1.0, steps=1,
    )[0]  # fmt: skip
    images = {"CT": crops["ct"], "MR": crops["mr"]}
    turnable = {"CT": crops["ct_turnable"], "MR": crops["mr_turnable"]}
    generators = sample_generators(1, 0, 0, range(CROPS))
    views = two_views(images, turnable, crops["registered"], configuration, generators).views
    ct, mr = (views[name].corrupted for name in ("CT", "MR"))
    partner = ct[:CROPS]
    results = {}
    for name, others in (("same partner", partner), ("other partner", partner.roll(1, 0)), ("single image", None)):
        if others is None:
            features = model({"MR": mr}).features["MR"][-1]
        else:
            partners = {"CT": mr, "MR": torch.cat([partner, others])}
            features = model({"CT": ct, "MR": mr}, 2 * CROPS, partners).features["MR"][-1]
        vectors = features.mean((2, 3, 4))
        first, second = F.normalize(vectors - vectors.mean(0), dim=1).chunk(2)
        nearest = (first @ second.T).argmax(1)
        results[name] = (nearest == torch.arange(CROPS)).float().mean().item()
    return results


def measure(
    collection: PreprocessedCollection, recipe: str, changes: dict[str, Any], steps: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Validation means of one run before and after training, the latter with the shares of :func:`top_1`."""
    settings = {
        **load_preset("tiny", recipe), "steps": steps, "validate_every": steps, "checkpoint_every": steps,
        "validation_batches": 16, "seed": seed, "workers": 0, "device": "cpu",
    }  # fmt: skip
    configuration = Configuration.from_dict({**settings, **changes}).for_spacing(collection.spacing)
    with tempfile.TemporaryDirectory() as folder:
        panels = Path(folder) / "panels"
        torch.manual_seed(seed)
        initial = PretrainingModel(configuration).eval()
        before = validate(initial, collection, configuration, CPU, 0, {}, panels)
        model = train(Path(folder), collection, configuration, CPU).eval()
        after = validate(model, collection, configuration, CPU, steps, {}, panels)
    return before, {**after, **top_1(model, collection, configuration)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", type=Path, help="preprocessed volumes of CT and MR")
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    collection = PreprocessedCollection.open(arguments.volumes)
    for variant in arguments.variants:
        runs = [measure(collection, *VARIANTS[variant], arguments.steps, seed) for seed in arguments.seeds]
        print(f"\n{variant}: before -> after, means of seeds {arguments.seeds}")
        for name in sorted(runs[0][1]):
            if not name.startswith(SHOWN):
                continue
            start, end = (fmean(run[part].get(name, float("nan")) for run in runs) for part in (0, 1))
            each = ", ".join(f"{run[1][name]:.3f}" for run in runs)
            print(f"  {name:32s} {start:.3f} -> {end:.3f}  ({each})", flush=True)


if __name__ == "__main__":
    main()
