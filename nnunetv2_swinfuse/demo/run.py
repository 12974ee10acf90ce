"""`swinfuse_demo`: the main job end to end, on synthetic volumes, through the commands a user would type.

`python benchmarks/demo.py FOLDER` repeats all but the pretraining with other volumes, and prints the Dice of each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_swinfuse.demo.volumes import DemoError, write_nnunet_raw, write_synthrad
from nnunetv2_swinfuse.discovery.register import external_trainers_folder
from nnunetv2_swinfuse.errors import errors_without_traceback
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, EXTERNAL_TRAINERS, PATHS, PLANS_FILE, RAW, RESULTS, TRAINER

COLLECTION = "SynthRAD"
DATASET_ID = 501
DATASET_NAME = "SwinFUSEDemo"
SHORT_TRAINER = f"{TRAINER}_10epochs"
# In so few steps a high learning rate is needed, and visible voxels at full weight give the sharper picture.
PRETRAINING = [
    "--recipe", "inpainting_first", "--steps", "150", "--batch_size", "2", "--learning_rate", "4e-3",
    "--visible_weight", "1", "--density_warmup_steps", "50",
]  # fmt: skip
# A training of two minutes needs short epochs and a bolder learning rate than one of hours.
TRAINING = {"ITERATIONS_PER_EPOCH": "20", "VALIDATION_ITERATIONS_PER_EPOCH": "2", "INITIAL_LR": "5e-3"}
# Patches of 32 x 32 x 32 voxels: an iteration on the whole head takes twice as long, and the brainstem is 1 % of it.
GPU_MEMORY_TARGET = "0.12"
SEED = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 and the command that failed, if one does."""
    parser = argparse.ArgumentParser(
        prog="swinfuse_demo",
        description="Make CT/MR volumes, pretrain, fine-tune in nnU-Net, predict, evaluate, draw. On a CPU in minutes.",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("swinfuse_demo"), help="where everything goes (default ./swinfuse_demo)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=SEED,
        help=f"of the volumes and of pretraining (default {SEED}); nnU-Net's training is not seeded",
    )
    parser.add_argument(
        "--data_only",
        action="store_true",
        help=f"only write the volumes, as collection {COLLECTION} and Dataset{DATASET_ID}_{DATASET_NAME}, into your "
        "own nnUNet_raw; nothing in it is overwritten",
    )
    options = parser.parse_args(arguments)
    try:
        with errors_without_traceback("swinfuse_demo"):
            if options.data_only:
                write_data_only(options.seed)
            else:
                run_demo(unused_folder(options.folder.absolute()), options.seed)
    except KeyboardInterrupt:
        print("swinfuse_demo: interrupted; start it again, it takes a new folder.", file=sys.stderr)
        raise SystemExit(130) from None


def write_data_only(seed: int = SEED) -> None:
    """Writes the demo's volumes into the user's own nnUNet_raw and says what to type next."""
    if not os.environ.get(RAW):
        raise DemoError("nnUNet_raw is not set; for example: export nnUNet_raw=/data/nnUNet_raw")
    raw = Path(os.environ[RAW])
    write_volumes(raw, seed)
    print(f"Written: {raw / COLLECTION} and {raw / f'Dataset{DATASET_ID}_{DATASET_NAME}'}. Now try:")
    print(f"    swinfuse_pretrain -d {COLLECTION}")
    print(f"    nnUNetv2_plan_and_preprocess -d {DATASET_ID} -c 3d_fullres")
    print("    swinfuse_register")
    print(f"    nnUNetv2_train {DATASET_ID} 3d_fullres 0 -tr {TRAINER}")


def write_volumes(raw: Path, seed: int = SEED) -> None:
    """Both layouts under `raw`; raises DemoError before writing anything when one of them exists.

    Args:
        raw: nnUNet_raw.
        seed: no two seeds share a patient.
    """
    if seed < 0:
        raise DemoError(f"--seed is {seed}; expected 0 or more")
    dataset = raw / f"Dataset{DATASET_ID}_{DATASET_NAME}"
    taken = [folder for folder in (raw / COLLECTION, *raw.glob(f"Dataset{DATASET_ID}_*")) if folder.exists()]
    if taken:
        raise DemoError(f"exists already and is never overwritten: {', '.join(map(str, taken))}. Move it away first")
    write_synthrad(raw / COLLECTION, patients=12, seed=2000 * seed)
    write_labelled_cases(raw, seed)
    if not dataset.is_dir():
        raise DemoError(f"{dataset} was not written")


def write_labelled_cases(raw: Path, seed: int = SEED) -> None:
    """The nnU-Net dataset: 10 MR cases to train on and 3 to test with."""
    # Other seeds than the collection's: no patient is in both.
    write_nnunet_raw(
        raw, DATASET_ID, DATASET_NAME, modality="MR", train_cases=10, test_cases=3, seed=2000 * seed + 1000
    )


def run_demo(folder: Path, seed: int = SEED) -> None:
    """Runs everything in a new folder; the user's nnU-Net paths are not touched."""
    start = time.time()
    folder.mkdir(parents=True)
    print(f"swinfuse_demo works in {folder}; delete it when you are done.")
    environment = demo_environment(folder)
    raw, results = folder / RAW, folder / RESULTS
    dataset = raw / f"Dataset{DATASET_ID}_{DATASET_NAME}"
    print_step(1, "writing 12 synthetic CT/MR patients and 13 labelled MR cases")
    write_volumes(raw, seed)

    print_step(2, "pretraining the encoder without labels")
    call(
        ["swinfuse_pretrain", "-d", COLLECTION, "-p", "tiny", "--device", "cpu", "--seed", str(seed), *PRETRAINING],
        environment,
    )
    predictions, scores = fine_tune(folder, environment)
    # matplotlib is not needed before.
    from nnunetv2_swinfuse.demo.picture import draw_demo

    panels = sorted((results / COLLECTION).glob("swinfuse__*/panels/*.png"))
    picture = draw_demo(folder / "demo.png", dataset, predictions, panels[-1])
    print("\nDice of the unseen cases: " + ", ".join(f"{name} {dice:.3f}" for name, dice in scores.items()))
    print(f"segmentations  {predictions}\nscores         {predictions / 'summary.json'}\npicture        {picture}")
    print(f"model          {next((results / dataset.name).iterdir())}")
    print(f"Finished in {(time.time() - start) / 60:.1f} minutes.")


def fine_tune(folder: Path, environment: Mapping[str, str]) -> tuple[Path, dict[str, float]]:
    """nnU-Net's part: plans, training from the published encoder, prediction of unseen cases and their scores.

    Args:
        folder: the demo's; it holds the labelled cases and the encoder.
        environment: result of :func:`demo_environment`.

    Returns:
        The folder of predictions, and the mean Dice by structure.
    """
    dataset = folder / RAW / f"Dataset{DATASET_ID}_{DATASET_NAME}"
    print_step(3, "nnU-Net plans and preprocesses the labelled dataset")
    call(
        ["nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", "3d_fullres", "-np", "2",
         "-gpu_memory_target", GPU_MEMORY_TARGET],
        environment,
    )  # fmt: skip
    print_step(4, "nnU-Net trains fold 0 with the pretrained encoder")
    call(["nnUNetv2_train", str(DATASET_ID), "3d_fullres", "0", "-tr", SHORT_TRAINER, "-device", "cpu"], environment)

    print_step(5, "stock nnU-Net predicts unseen cases, without knowing of this package's trainers")
    predictions = folder / "predictions"
    stock = {name: value for name, value in environment.items() if name != EXTERNAL_TRAINERS}
    call(
        ["nnUNetv2_predict", "-d", str(DATASET_ID), "-c", "3d_fullres", "-f", "0", "-tr", SHORT_TRAINER,
         "-device", "cpu", "-i", str(dataset / "imagesTs"), "-o", str(predictions), "-npp", "1", "-nps", "1"],
        stock,
    )  # fmt: skip
    print_step(6, "nnU-Net evaluates, and a picture is drawn")
    call(
        ["nnUNetv2_evaluate_folder", str(dataset / "labelsTs"), str(predictions), "-np", "1",
         "-djfile", str(predictions / DATASET_FILE), "-pfile", str(predictions / PLANS_FILE)],
        stock,
    )  # fmt: skip
    mean = json.loads((predictions / "summary.json").read_text())["mean"]
    labels = {v: k for k, v in json.loads((dataset / DATASET_FILE).read_text())["labels"].items()}
    return predictions, {labels[int(label)]: values["Dice"] for label, values in mean.items()}


def demo_environment(folder: Path) -> dict[str, str]:
    """The environment of the commands: nnU-Net's paths inside `folder`, and short epochs."""
    environment = dict(os.environ)
    for name in PATHS:
        (folder / name).mkdir(parents=True)
        environment[name] = str(folder / name)
    environment[EXTERNAL_TRAINERS] = str(external_trainers_folder())
    # The demo must not use the user's own settings and encoder.
    environment = {name: value for name, value in environment.items() if not name.startswith("SWINFUSE_")}
    environment |= {f"SWINFUSE_{name}": value for name, value in TRAINING.items()}
    # Threads that wait by spinning slow each other down many times over where cores are few.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("nnUNet_n_proc_DA", "1")
    environment.setdefault("nnUNet_def_n_proc", "1")
    return environment


def unused_folder(folder: Path) -> Path:
    """`folder`, or the same with a number where it already exists."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}_{number}")
    return candidate


def print_step(number: int, title: str) -> None:
    print(f"\n=== {number} of 6: {title}", flush=True)


def call(command: list[str], environment: Mapping[str, str]) -> None:
    """Runs a console command of this Python environment and shows what it prints.

    Raises:
        DemoError: naming the command, when it is missing or fails.
    """
    print("$ " + " ".join(command), flush=True)
    program = shutil.which(command[0], path=sysconfig.get_path("scripts")) or shutil.which(command[0])
    if program is None:
        raise DemoError(
            f"{command[0]} is not installed in {sys.prefix}; install this package there again (docs/installation.md)"
        )
    status = subprocess.run([program, *command[1:]], env=dict(environment), check=False).returncode
    if status:
        raise DemoError(f"this command ended with status {status}: {' '.join(command)}")
