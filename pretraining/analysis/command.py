"""`swinfuse_analyze`: what encoders do with CT and MR, checked one by one, next to random encoders."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_swinfuse.architecture.topology import triple
from nnunetv2_swinfuse.errors import InputError, errors_without_traceback
from nnunetv2_swinfuse.nnunet_names import PREPROCESSED, RAW
from pretraining.analysis.crops import ALL
from pretraining.preprocessed.splits import SPLITS, VALIDATION
from pretraining.preset_files import preset_names, recipe_names

PROGRAM = "swinfuse_analyze"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 on bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(words)
    with errors_without_traceback(PROGRAM):
        print(run(options, words))
        print(f"\nPictures and records: {options.output}")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all checks, their options and help."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Check what pretrained encoders do with CT and MR. Explained in docs/analysis.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    checks = parser.add_subparsers(dest="check", required=True, metavar="CHECK")
    attention = checks.add_parser("attention", help="does the DIM attend differently in CT and MR, and to what")
    attention.add_argument("--pair", type=int, default=0, metavar="N", help="which pair of crops is drawn; default 0")
    features = checks.add_parser("features", help="PCA, t-SNE, JSD, MMD, CKA, modality and organ probe, layer by layer")
    features.add_argument(
        "-d", "--datasets", nargs=2, metavar="DATASET",
        help="two labelled datasets in nnUNet_raw instead of the CT and MR of a collection, such as 510 511",
    )  # fmt: skip
    features.add_argument("--labelled", nargs="+", type=int, default=[4], metavar="N",
                          help="organ probe: labelled cases to fit on; default 4")  # fmt: skip
    features.add_argument("--test", type=int, metavar="N", help="organ probe: test cases; default: half, at most 40")
    features.add_argument("--split_seed", type=int, default=0, help="organ probe: seed of the split; default 0")
    features.add_argument("--splits", type=Path, metavar="FILE", help="organ probe: splits.json of swinfuse_benchmark")
    features.add_argument("--channel", type=int, default=0, help="channel of cases with several; default 0")
    features.add_argument(
        "--modality", nargs="+", action="extend", default=[], metavar="NAME=CT|MR", help="modality of other names"
    )
    features.add_argument("--without_projections", action="store_true", help="no PCA and t-SNE")
    features.add_argument("--without_organs", action="store_true", help="no organ probe")
    features.add_argument("--overwrite", action="store_true", help="organ probe: compute rows that exist again")
    density = checks.add_parser("density", help="how the density estimate depends on bandwidth, dimensions, tokens")
    density.add_argument("--layer", metavar="NAME", help="such as 'stage 1'; default: DIM, or the deepest stage")
    contrast = checks.add_parser("contrast", help="features of crops and of the same crops in random contrasts")
    contrast.add_argument("--contrasts", type=int, default=2, metavar="N", help="of each crop; default 2")
    for check in (attention, features, density, contrast):
        _add_common(check)
    runs = checks.add_parser("runs", help="several pretraining runs side by side: health and voxel probe")
    runs.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="folders of runs; the same NAME: seeds of one arm")
    runs.add_argument("--probe", type=Path, metavar="CSV", help="table of python -m pretraining.voxel_probe")
    runs.add_argument("--over", metavar="SETTING", help="draw along a setting such as density_weight, or volumes")
    runs.add_argument("--output", type=Path, default=Path(PROGRAM), help=f"folder; default {PROGRAM}")
    # The options of all checks in one place; `CHECK --help` explains them.
    parser.epilog = "\n".join(check.format_usage() for check in checks.choices.values())
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> str:
    """Runs a check; returns its table.

    Raises:
        InputError: for encoders, images or options that cannot be used.
    """
    if options.check == "runs":
        return _compare_runs(options, words)
    # torch, nnunetv2 and matplotlib take seconds to import: not for --help.
    from pretraining.analysis import checks

    torch.set_num_threads(options.threads)
    if options.check == "features" and not options.without_projections:
        from pretraining.analysis.projections import require_scikit_learn

        require_scikit_learn()
    context, organs = _prepare(options, words)
    if options.check == "attention":
        return checks.check_attention(context, options.pair)
    if options.check == "features":
        return checks.check_features(context, not options.without_projections, organs)
    if options.check == "density":
        return checks.check_density(context, options.layer)
    return checks.check_contrast(context, options.contrasts)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "encoders", nargs="*", metavar="[NAME=]PATH",
        help="folder of a run, checkpoint or encoder file; several are shown side by side",
    )  # fmt: skip
    parser.add_argument(
        "-c", "--collection", nargs="+", metavar="NAME",
        help="preprocessed collection whose CT and MR crops are used, named as for swinfuse_pretrain -d",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=[*SPLITS, ALL], default=VALIDATION,
        help="patients of the collection; default: validation, which pretraining has not seen",
    )  # fmt: skip
    parser.add_argument("-p", "--preset", choices=preset_names(), help="random encoders of a preset, without a run")
    parser.add_argument("--recipe", choices=recipe_names(), default="swinfuse", help="of these random encoders")
    parser.add_argument("--random_seeds", type=int, default=3, metavar="N", help="number of random encoders; default 3")
    parser.add_argument("--crop", nargs=3, type=int, default=[64, 64, 64], metavar=("Z", "Y", "X"),
                        help="voxels of a crop; default 64 64 64")  # fmt: skip
    parser.add_argument("--crops", type=int, default=32, metavar="N", help="of each domain; default 32")
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="of each domain and layer; default 512")
    parser.add_argument("--seed", type=int, default=0, help="of all draws; default 0")
    parser.add_argument("--output", type=Path, default=Path(PROGRAM), help=f"folder; default {PROGRAM}")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; default 1")


def _prepare(options: argparse.Namespace, words: Sequence[str]) -> tuple[Any, Callable[[Any], dict[str, Any]] | None]:
    """What the checks are given, and the organ probe of an arm where there are labels."""
    from pretraining.analysis.arms import build_arms, collection_notes
    from pretraining.analysis.checks import Context
    from pretraining.analysis.crops import collection_crops
    from pretraining.analysis.layers import check_crop_size
    from pretraining.collections.names import find_preprocessed
    from pretraining.nnunet_paths import required_paths
    from pretraining.preprocessed.collection import FOLDER, PreprocessedCollection
    from pretraining.voxel_probe.encoders import preset_encoder, read_encoder

    _check_numbers(options)
    (preprocessed,) = required_paths(PREPROCESSED)
    trained = [read_encoder(words_of, preprocessed) for words_of in options.encoders]
    if options.preset:
        trained.append(preset_encoder(options.preset, options.recipe))
    collection = None
    if options.collection:
        collection = PreprocessedCollection.open(find_preprocessed(options.collection, preprocessed, FOLDER))
    options.output.mkdir(parents=True, exist_ok=True)
    if getattr(options, "datasets", None):
        return _prepare_labelled(options, words, trained, collection, preprocessed)
    if collection is None:
        raise InputError(
            "no images: name a preprocessed collection with -c"
            + (", or two labelled datasets with -d" if options.check == "features" else "")
        )
    notes = collection_notes(trained, collection)
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    arms = build_arms(trained, collection.spacing, options.random_seeds)
    if options.check == "attention":
        _require_modules(arms)
    for arm in arms:
        check_crop_size(arm.label, arm.network, tuple(options.crop))
    crops = collection_crops(collection, options.split, triple(options.crop), options.crops, options.seed)
    if options.check == "attention" and not crops.registered:
        raise InputError(
            f"{collection.folder}: fewer than two registered pairs of CT and MR in the split {options.split!r}; the "
            "check of attention needs them. Use --split all, or a collection with pairs"
        )
    if options.check == "attention" and not 0 <= options.pair < options.crops:
        raise InputError(f"--pair {options.pair}: there are {options.crops} pairs of crops, counted from 0")
    context = Context(arms, crops, options.output, [shlex.join(words)], options.seed, options.tokens, notes)
    return context, None


def _prepare_labelled(
    options: argparse.Namespace, words: Sequence[str], trained: Sequence[Any], collection: Any, preprocessed: Path
) -> tuple[Any, Callable[[Any], dict[str, Any]] | None]:
    from pretraining.analysis.arms import build_arms, normalisation_notes
    from pretraining.analysis.checks import Context
    from pretraining.analysis.crops import labelled_crops
    from pretraining.analysis.layer_probe import probe_layers
    from pretraining.collections.modalities import ModalityMap
    from pretraining.nnunet_paths import required_paths
    from pretraining.voxel_probe.command import make_plan
    from pretraining.voxel_probe.datasets import find_dataset, label_key
    from pretraining.voxel_probe.encoders import collection_normalisation
    from pretraining.voxel_probe.results import Results

    (raw,) = required_paths(RAW)
    own = collection_normalisation(collection.folder.parent.name, preprocessed) if collection else None
    known = [(encoder.name, encoder.normalisation) for encoder in trained if encoder.normalisation]
    source, normalisation = (collection.name, own) if own else known[0] if known else ("", None)
    if normalisation is None:
        raise InputError(
            "the normalisation of the images is not known; name a preprocessed collection with -c, whose spacing and "
            "normalisation is used"
        )
    notes = normalisation_notes(trained, normalisation, source)
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    modalities = ModalityMap.from_words(options.modality)
    datasets = [find_dataset(name, raw, modalities, options.channel) for name in options.datasets]
    arms = build_arms(trained, normalisation.spacing, options.random_seeds)
    divisor = triple(np.lcm.reduce([(2, 2, 2), *(arm.network.divisor for arm in arms)]).tolist())
    crop = triple(options.crop)
    crops = labelled_crops(datasets, normalisation, crop, divisor, options.crops, options.seed, preprocessed)
    context = Context(arms, crops, options.output, [shlex.join(words)], options.seed, options.tokens, notes)
    if options.without_organs:
        return context, None
    keys = [{label_key(name) for name in dataset.labels.values()} for dataset in datasets]
    # The probe of one dataset on the other needs a label in common.
    options.test_on = options.datasets if keys[0] & keys[1] else []
    plan = make_plan(options, raw)
    results = Results(options.output / "organ_probe.csv")

    def organs(arm: Any) -> dict[str, Any]:
        return probe_layers(
            arm.name, arm.seed, arm.network, arm.description, plan, normalisation, crop, divisor, preprocessed, results,
            options.overwrite,
        )  # fmt: skip

    return context, organs


def _compare_runs(options: argparse.Namespace, words: Sequence[str]) -> str:
    from pretraining.analysis.record import write_record
    from pretraining.analysis.run_comparison import (
        draw_comparison,
        group_runs,
        health_summary,
        make_table,
        probe_summaries,
        read_run,
    )
    from pretraining.voxel_probe.record import read_floors, read_labelled
    from pretraining.voxel_probe.results import Results

    arms = group_runs([read_run(words_of) for words_of in options.runs])
    if options.probe and not options.probe.is_file():
        raise InputError(f"{options.probe}: no such file; expected the table of python -m pretraining.voxel_probe")
    probes = {}
    if options.probe:
        rows = Results(options.probe).rows
        probes = probe_summaries(rows, read_floors(options.probe, arms), read_labelled(options.probe, rows))
    missing = [name for name in arms if options.probe and not any(name in of_arms for of_arms in probes.values())]
    if missing:
        raise InputError(
            f"{options.probe}: no rows of {', '.join(missing)}; expected the names that the runs have here. Probe them "
            "with the same NAME=RUN"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    draw_comparison(options.output / "runs.png", arms, probes, options.over)
    results = {
        "runs": {
            name: {
                "folders": [str(run.folder) for run in runs], "recipes": [run.settings.get("recipe") for run in runs],
                "steps": [run.step for run in runs], "volumes": [run.volumes for run in runs],
                "health": health_summary(runs),
            } for name, runs in arms.items()
        },
        "probe": probes,
    }  # fmt: skip
    write_record(options.output / "runs.json", [shlex.join(words)], [], {}, results)
    return make_table(arms, probes)


def _require_modules(arms: Sequence[Any]) -> None:
    without = [arm.label for arm in arms if arm.network.encoder.domain_invariance is None]
    if without:
        raise InputError(
            f"{', '.join(without)}: no Domain Invariance Module, whose attention is checked; leave these encoders out"
        )


def _check_numbers(options: argparse.Namespace) -> None:
    if options.crops < 4 or options.tokens < options.crops:
        raise InputError(
            f"--crops {options.crops} --tokens {options.tokens}: expected 4 crops of each domain or more, and as many "
            "tokens at least"
        )
    if options.random_seeds < 0 or getattr(options, "contrasts", 1) < 1:
        raise InputError("--random_seeds must not be negative, --contrasts at least 1")
