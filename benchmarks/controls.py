"""What a recipe's proxy tasks can do without the training of its encoder: the controls of inpainting and rotation.

    python benchmarks/controls.py CTMR --recipes swinfuse simmim --steps 200 --seeds 0 1 2 -o controls

For each recipe and seed, two runs of `swinfuse_pretrain` are trained on the same crops, one of them with
`--freeze_encoder`, and both are validated on single images. A second control needs no network: harmonic fill is told
where the cut-outs are and interpolates between the visible voxels. `controls.csv` in the output folder has one row for
each measure. Runs and rows that exist are not repeated: a killed script resumes, and later calls add recipes and seeds.
All rows of a folder have the same preset, batches and further options (`controls.json`); others are refused.
`--table` prints the tables of all rows. Options that are not listed below are passed on to `swinfuse_pretrain`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from scipy import sparse

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.errors import InputError
from pretraining import cli
from pretraining.checkpoint import CHECKPOINT, load_checkpoint
from pretraining.collections.collection import DOMAINS
from pretraining.collections.names import find_preprocessed
from pretraining.configuration import Configuration
from pretraining.markdown import markdown_table
from pretraining.model import PretrainingModel
from pretraining.objective import VALIDATION, VIEWS
from pretraining.preprocessed.collection import FOLDER, PreprocessedCollection
from pretraining.preprocessed.crops import CropDataset
from pretraining.preset_files import load_preset, recipe_names
from pretraining.randomness import sample_generators
from pretraining.run_configuration import run_folder
from pretraining.validation import validate
from pretraining.view_pairs import two_views

CPU = torch.device("cpu")
TABLE = "controls.csv"
RECORD = "controls.json"
COLUMNS = ("collection", "recipe", "seed", "encoder", "steps", "measure", "value")
TRAINED, FROZEN, HARMONIC = "trained", "frozen", "harmonic"
KEPT = ("masked_error", "rotation_accuracy", "rank", "divergence", "floor", "probe_accuracy", "cka")
STAGES = [f"stage_{stage}" for stage in range(3)]
ERROR_COLUMNS = [
    "recipe, seeds", "L1 of the mean: CT, MR", "harmonic", "frozen", "trained", "rotation, frozen: CT, MR",
    "rotation, trained",
]  # fmt: skip
RANK_COLUMNS = [
    "recipe, seeds", "rank of stages 0, 1, 2, frozen", "rank, trained", "JSD (floor) of single images, frozen",
    "single images, trained", "of stages 1, 2, frozen", "stages, trained", "of pairs, frozen", "pairs, trained",
]  # fmt: skip
Rows = dict[tuple[str, ...], str]


def harmonic_fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (z, y, x) with its masked voxels replaced by the harmonic function of the visible ones.

    Each masked voxel becomes the mean of its neighbours along the axes; at the border of the image there are fewer.
    Solved by conjugate gradients. Masked voxels without a path to a visible one become 0.
    """
    index = np.full(mask.shape, -1)
    index[mask] = np.arange(mask.sum())
    count = int(mask.sum())
    diagonal, right = np.zeros(count), np.zeros(count)
    rows, columns = [], []
    for axis in range(3):
        for low, high in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            voxel, neighbour = ([slice(None)] * 3 for _ in range(2))
            voxel[axis], neighbour[axis] = low, high
            own, other, values = index[tuple(voxel)], index[tuple(neighbour)], image[tuple(neighbour)]
            unknown = own >= 0
            np.add.at(diagonal, own[unknown], 1)
            beside_visible = unknown & (other < 0)
            np.add.at(right, own[beside_visible], values[beside_visible])
            both_unknown = unknown & (other >= 0)
            rows.append(own[both_unknown])
            columns.append(other[both_unknown])
    row, column = np.concatenate(rows), np.concatenate(columns)
    laplacian = sparse.diags(diagonal) - sparse.csr_matrix((np.ones(len(row)), (row, column)), (count, count))
    solution, failed = sparse.linalg.cg(laplacian, right, rtol=1e-5)
    if failed:
        raise RuntimeError(f"harmonic fill of {mask.sum()} of {mask.size} voxels did not converge")
    filled = image.astype(np.float64)
    filled[mask] = solution
    return filled


def check_harmonic_fill() -> None:
    """Stops unless a ramp, which is harmonic, is recovered from its border, and a single voxel from its neighbours."""
    z, y, x = np.mgrid[:10, :12, :8].astype(float)
    ramp = 2 * z - y + 0.5 * x
    inside = np.zeros(ramp.shape, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    np.testing.assert_allclose(harmonic_fill(np.where(inside, 0, ramp), inside), ramp, atol=1e-2)
    image = np.random.default_rng(0).normal(size=(3, 3, 3))
    centre = np.zeros(image.shape, bool)
    centre[1, 1, 1] = True
    neighbours = [image[0, 1, 1], image[2, 1, 1], image[1, 0, 1], image[1, 2, 1], image[1, 1, 0], image[1, 1, 2]]
    np.testing.assert_allclose(harmonic_fill(image, centre)[1, 1, 1], np.mean(neighbours))


def harmonic_errors(collection: PreprocessedCollection, configuration: Configuration) -> dict[str, float]:
    """L1 of harmonic fill over the cut-out voxels, except padding, of the views of :func:`validate`, by modality."""
    crops = CropDataset(
        collection, "validation", configuration.crop_size, configuration.batch_size,
        seed=configuration.seed, foreground_share=1.0, steps=configuration.validation_batches,
        domains=configuration.modalities,
    )  # fmt: skip
    errors: dict[str, list[float]] = defaultdict(list)
    for step in range(len(crops)):
        batch = crops[step]
        images = {name: batch[name.lower()] for name in configuration.modalities}
        turnable = {name: batch[f"{name.lower()}_turnable"] for name in images}
        generators = sample_generators(configuration.seed, step, VIEWS + VALIDATION, range(configuration.batch_size))
        inside = {name: batch[f"{name.lower()}_inside"] for name in images}
        views = two_views(images, turnable, batch["registered"], configuration, generators, inside=inside).views
        for name, view in views.items():
            arrays = (view.target.double().numpy(), view.mask.numpy(), view.inside.numpy())
            wrong, count = 0.0, 0
            for (target,), (mask,), (shown,) in zip(*arrays, strict=True):
                counted = mask & shown
                wrong += np.abs(harmonic_fill(np.where(mask, 0, target), mask) - target)[counted].sum()
                count += int(counted.sum())
            errors[name].append(wrong / max(count, 1))
    return {f"masked_error_{name}": fmean(values) for name, values in errors.items()}


def train_run(options: argparse.Namespace, recipe: str, seed: int, encoder: str, other_options: Sequence[str]) -> Path:
    """The folder of a finished run of `swinfuse_pretrain`, trained or resumed where it is not finished."""
    results = options.output / f"seed_{seed}_{encoder}_{options.steps}_steps"
    results.mkdir(parents=True, exist_ok=True)
    name = preprocessed_folder(options).parent.name
    folder = results / name / run_folder(options.preset, recipe)
    steps = ["--steps", str(options.steps)] if load_preset(options.preset, recipe).get("steps") != 0 else []
    words = [
        "-d", *options.collection, "-p", options.preset, "--recipe", recipe, *steps, "--seed", str(seed),
        "--device", "cpu", "--workers", "0", "--train_only", "--validate_every", str(options.steps), *other_options,
    ]  # fmt: skip
    if encoder == FROZEN:
        words.append("--freeze_encoder")
    state = load_checkpoint(folder / CHECKPOINT) if (folder / CHECKPOINT).exists() else None
    if state is None or state.step < state.configuration.steps:
        os.environ["nnUNet_results"] = str(results)
        cli.main([*words, *(["--c"] if state else [])])
    return folder


def measure_run(
    folder: Path, collection: PreprocessedCollection, batches: int
) -> tuple[dict[str, float], Configuration]:
    """Validation means of a finished run over so many batches, and its settings."""
    state = load_checkpoint(folder / CHECKPOINT)
    configuration = replace(state.configuration, validation_batches=batches).for_spacing(collection.spacing)
    model = PretrainingModel(configuration)
    model.load_state_dict(state.network_weights)
    with tempfile.TemporaryDirectory() as panels:
        means = validate(model, collection, configuration, CPU, state.step, state.averages, Path(panels))
    return {name: value for name, value in means.items() if name.startswith(KEPT)}, configuration


def preprocessed_folder(options: argparse.Namespace) -> Path:
    return find_preprocessed(options.collection, Path(os.environ["nnUNet_preprocessed"]), FOLDER)


def read_rows(path: Path) -> Rows:
    if not path.is_file():
        return {}
    with path.open() as file:
        return {tuple(row[name] for name in COLUMNS[:-1]): row["value"] for row in csv.DictReader(file)}


def write_rows(path: Path, rows: Rows) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((*key, value) for key, value in sorted(rows.items()))


def format_tables(rows: Rows) -> str:
    """Two tables for each collection and number of steps: errors and accuracies, then rank and divergence.

    Values are means over the seeds.
    """
    values: dict[tuple[str, ...], list[float]] = defaultdict(list)
    seeds: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for (collection, recipe, seed, encoder, steps, measure), value in rows.items():
        values[collection, steps, recipe, encoder, measure].append(float(value))
        seeds[collection, steps, recipe].add(seed)

    def cell(run: tuple[str, ...], encoder: str, measure: str, parts: Sequence[str]) -> str:
        measured = [values.get((*run, encoder, f"{measure}_{part}")) for part in parts]
        return ", ".join("-" if value is None else f"{fmean(value):.3f}" for value in measured)

    tables = []
    for collection, steps in sorted({run[:2] for run in seeds}):
        errors: list[list[str]] = []
        ranks: list[list[str]] = []
        for run in sorted(run for run in seeds if run[:2] == (collection, steps)):
            name = f"`{run[2]}`, {len(seeds[run])}"
            errors.append(
                [
                    name,
                    cell(run, TRAINED, "masked_error_of_mean", DOMAINS),
                    *(cell(run, encoder, "masked_error", DOMAINS) for encoder in (HARMONIC, FROZEN, TRAINED)),
                    *(cell(run, encoder, "rotation_accuracy", DOMAINS) for encoder in (FROZEN, TRAINED)),
                ]
            )
            ranks.append(
                [
                    name,
                    *(cell(run, encoder, "rank", STAGES) for encoder in (FROZEN, TRAINED)),
                    *(
                        f"{cell(run, encoder, 'divergence', levels)} ({cell(run, encoder, 'floor', levels)})"
                        for levels in (["single_image"], STAGES[1:], ["paired"])
                        for encoder in (FROZEN, TRAINED)
                    ),
                ]
            )
        both = [markdown_table(ERROR_COLUMNS, errors), markdown_table(RANK_COLUMNS, ranks)]
        tables.append("\n\n".join([f"{collection}, {steps} steps", *both]))
    return "\n\n".join(tables)


def options_of_rows(options: argparse.Namespace, other_options: Sequence[str]) -> dict[str, object]:
    """What all rows of a folder have in common."""
    return {"preset": options.preset, "batches": options.batches, "options": list(other_options)}


def check_options(options: argparse.Namespace, other_options: Sequence[str]) -> None:
    """Exits where the rows of the folder have another preset, number of batches or other options."""
    path, table = options.output / RECORD, options.output / TABLE
    wanted = options_of_rows(options, other_options)
    if path.is_file():
        if (found := json.loads(path.read_text())) != wanted:
            raise SystemExit(f"{path}: the rows of this folder have {found}, requested is {wanted}: use another -o")
    elif table.is_file():
        raise SystemExit(f"{path}: missing, so the options of the rows in {table} are not known: use another -o")


def measure(options: argparse.Namespace, recipe: str, seed: int, other_options: Sequence[str]) -> None:
    """Adds the rows of one recipe and seed that are missing."""
    table = options.output / TABLE
    collection = PreprocessedCollection.open(preprocessed_folder(options))
    key = (" ".join(options.collection), recipe, str(seed))
    for encoder in options.encoders:
        rows = read_rows(table)
        if any(row[:5] == (*key, encoder, str(options.steps)) for row in rows):
            continue
        try:
            folder = train_run(options, recipe, seed, encoder, other_options)
        except SystemExit as error:
            if encoder == FROZEN and error.code == 2:
                print(f"{recipe}: no task has a head that could be trained on a frozen encoder", file=sys.stderr)
                continue
            raise
        values, configuration = measure_run(folder, collection, options.batches)
        measured = {encoder: values}
        if encoder == TRAINED and configuration.loss_weight("inpainting"):
            measured[HARMONIC] = harmonic_errors(collection, configuration)
        for name, of_encoder in measured.items():
            rows |= {(*key, name, str(options.steps), m): f"{value:.4f}" for m, value in of_encoder.items()}
        with atomic_write(options.output / RECORD) as temporary:
            temporary.write_text(json.dumps(options_of_rows(options, other_options)) + "\n")
        write_rows(table, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", nargs="*", help="preprocessed collection, as after swinfuse_pretrain -d")
    parser.add_argument("--recipes", nargs="+", choices=recipe_names(), default=["swinfuse"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--encoders", nargs="+", choices=(TRAINED, FROZEN), default=[TRAINED, FROZEN], help="default: both"
    )
    parser.add_argument("-p", "--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batches", type=int, default=16, help="number of validation batches; default 16")
    parser.add_argument("-o", "--output", type=Path, default=Path("controls"), help="runs and rows; default controls")
    parser.add_argument("--table", action="store_true", help="print the tables of the rows, train nothing")
    options, other_options = parser.parse_known_args()
    if not options.table:
        torch.set_num_threads(1)
        check_harmonic_fill()
        check_options(options, other_options)
        for seed in options.seeds:
            for recipe in options.recipes:
                measure(options, recipe, seed, other_options)
    print(format_tables(read_rows(options.output / TABLE)))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"controls.py: {error}") from None
