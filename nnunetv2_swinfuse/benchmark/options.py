"""The command line of `swinfuse_benchmark`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, get_args

from nnunetv2_swinfuse.benchmark.arms import ARMS, DESCRIPTIONS
from nnunetv2_swinfuse.benchmark.cells import Workspace
from nnunetv2_swinfuse.benchmark.experiment import Device, Experiment, from_dict, load_experiment
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.nnunet_names import RESULTS

# Fields of the experiment that can be options on the command line instead of a file.
FIELDS = ("name", "datasets", "arms", "labels", "seeds", "folds", "test_cases", "configuration", "device")


def build_parser() -> argparse.ArgumentParser:
    """All options, with their help."""
    width = max(map(len, ARMS)) + 2
    listing = "\n".join(f"  {name:<{width}}{DESCRIPTIONS[name]}" for name in ARMS)
    parser = argparse.ArgumentParser(
        prog="swinfuse_benchmark",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares training methods: runs every cell (arm, dataset, labels, seed, fold) with nnU-Net's own "
        "commands,\nthen computes measures, statistics and a report. Resumes where it was stopped.",
        epilog=f"arms:\n{listing}\n\nWhat an experiment's file holds, and how to read a verdict: docs/benchmark.md",
    )
    parser.add_argument("experiment", nargs="?", type=Path, metavar="EXPERIMENT.json", help="an experiment as a file")
    chosen = parser.add_argument_group("an experiment without a file")
    chosen.add_argument("-d", dest="datasets", type=int, nargs="+", metavar="ID", help="datasets in nnUNet_raw")
    chosen.add_argument("--arms", nargs="+", metavar="ARM", help="see below")
    chosen.add_argument("--name", help="name of the folder and the report; default: benchmark")
    chosen.add_argument("--labels", nargs="+", type=labels, metavar="N", help="labelled cases, or all (default)")
    chosen.add_argument("--seeds", nargs="+", type=int, metavar="N", help="seeds of the runs; default 0 1 2")
    chosen.add_argument("--folds", nargs="+", type=int, metavar="N", help="folds of the cross-validation; default all")
    chosen.add_argument("--test_cases", type=int, metavar="N", help="a test split of N cases in place of folds")
    chosen.add_argument("--configuration", help="configuration of the plans; default 3d_fullres")
    chosen.add_argument("--epochs", type=int, help="epochs per training; default 1000")
    chosen.add_argument("--iterations", type=int, help="iterations per epoch; default 250")
    chosen.add_argument("--pretrain_on", nargs="+", metavar="NAME", help="collections, as swinfuse_pretrain -d")
    chosen.add_argument("--pretrain_preset", default="base", metavar="NAME", help="its preset; default base")
    chosen.add_argument("--pretrain_steps", type=int, metavar="N", help="the budget of every pretraining")
    chosen.add_argument("-device", dest="device", choices=get_args(Device), help="default cuda")
    what = parser.add_argument_group("what to do")
    what.add_argument("--list", action="store_true", help="show the cells, what is done, how long the rest takes")
    what.add_argument("--prepare_only", action="store_true", help="preprocess and pretrain, train no cell")
    what.add_argument(
        "--cell", metavar="NAME", help="only this cell of --list, or those that match, as '*__seed_0__*'; no report"
    )
    what.add_argument("--report_only", action="store_true", help="write the report from what is done")
    what.add_argument(
        "--add_results", nargs="+", action="extend", default=[], type=Path, metavar="FOLDER",
        help="take over finished cells from the results of other experiments with the same settings",
    )  # fmt: skip
    what.add_argument("--slurm", action="store_true", help="write scripts for a cluster")
    what.add_argument(
        "--minutes", type=float, help="start only pretrainings and cells that should finish within this time"
    )
    what.add_argument("-num_workers", type=int, default=1, help="cells run at the same time, sharing the cores or GPUs")
    what.add_argument("--without_pictures", action="store_true", help="leave pictures of patients out of the report")
    where = parser.add_argument_group("where")
    where.add_argument(
        "-o", dest="output", type=Path, help="data, encoders, models; default nnUNet_results/swinfuse_benchmark/NAME"
    )
    where.add_argument(
        "--results",
        type=Path,
        help="folder of the results to keep: per-case table and provenance; default OUTPUT/results",
    )
    return parser


def labels(word: str) -> int | str:
    """A number of cases, or `all`."""
    return word if word == "all" else int(word)


def chosen_experiment(options: argparse.Namespace) -> Experiment:
    """The experiment of the file, or of the flags.

    Raises:
        BenchmarkError: when there are both or neither, and as :func:`from_dict`.
    """
    flags_set = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    if options.experiment is not None:
        flags = sorted(set(flags_set) - {"name"})
        flags += [name for name in ("epochs", "iterations", "pretrain_on") if getattr(options, name) is not None]
        if flags:
            raise BenchmarkError(
                f"{options.experiment} is the experiment: change {', '.join(flags)} there, not on the command line"
            )
        return load_experiment(options.experiment)
    if not options.datasets or not options.arms:
        raise BenchmarkError("name an experiment's file, or -d DATASETS and --arms ARMS (--help lists them)")
    values: dict[str, Any] = {"name": "benchmark", **flags_set}
    if "test_cases" not in values:
        values.setdefault("folds", [0, 1, 2, 3, 4])
    length = {name: getattr(options, name) for name in ("epochs", "iterations") if getattr(options, name) is not None}
    values["length"] = length
    if options.pretrain_on:
        values["pretraining"] = {
            "collections": options.pretrain_on,
            "preset": options.pretrain_preset,
            "steps": options.pretrain_steps or 100_000,
        }
    return from_dict(values, "command line")


def output_folder(options: argparse.Namespace, experiment: Experiment) -> Path:
    """The folder for everything that can be created again."""
    if options.output is not None:
        return Path(options.output).absolute()
    results = os.environ.get(RESULTS)
    if not results:
        raise BenchmarkError("nnUNet_results is not set: export it, or name a folder with -o")
    return Path(results).absolute() / "swinfuse_benchmark" / experiment.name


def resume_command(experiment: Path, workspace: Workspace, own_results: bool) -> list[str]:
    """`swinfuse_benchmark` for an experiment and its folders, from any folder.

    Args:
        experiment: its file.
        workspace: its folders.
        own_results: whether the results are elsewhere than in the output folder.
    """
    command = ["swinfuse_benchmark", str(experiment.absolute()), "-o", str(workspace.root)]
    return [*command, "--results", str(workspace.results)] if own_results else command
