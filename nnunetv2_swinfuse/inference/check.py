"""`swinfuse_check`: whether images are what a model was trained for, before anything is predicted."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from nnunetv2_swinfuse.architecture.atomic_write import write_text
from nnunetv2_swinfuse.compatibility import PACKAGE
from nnunetv2_swinfuse.errors import InputError, errors_without_traceback, reading
from nnunetv2_swinfuse.inference.case_checks import CHECKS, NEVER_ACCEPTED, check_case
from nnunetv2_swinfuse.inference.cases import InputCase, find_cases
from nnunetv2_swinfuse.inference.findings import EXIT_CODES, CaseFindings, Severity, worst
from nnunetv2_swinfuse.inference.model_description import ModelDescription, describe_model
from nnunetv2_swinfuse.nnunet_names import RESULTS, STOCK_PLANS, TRAINER

PROGRAM = "swinfuse_check"
ACCEPTABLE = sorted(set(CHECKS) - NEVER_ACCEPTED)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point. Exits with 0 when all cases passed, 3 with warnings, 4 when one is refused, 2 without a result."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.epilog = "checks:\n" + "\n".join(f"  {name:18} {what}" for name, what in CHECKS.items())
    parser.add_argument("-i", nargs="+", type=Path, required=True, metavar="PATH", help="images, or folders of images")
    add_model_arguments(parser)
    add_accept_argument(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON, '-' for standard output")
    options = parser.parse_args(arguments)
    with errors_without_traceback(PROGRAM):
        model = describe_model(model_folder(options))
        cases = find_cases(options.i, model.file_ending, len(model.channels))
        results = check_cases(cases, model, options.accept)
        text = json.dumps(report(results, model, options.accept), indent=2)
        if options.json is not None and str(options.json) != "-":
            write_text(options.json, text + "\n")
    if options.json is not None and str(options.json) == "-":
        print(text)
    else:
        print_findings(results)
    raise SystemExit(EXIT_CODES[worst(results)])


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """nnU-Net's two ways of naming a model: its folder, or dataset, trainer, plans and configuration."""
    group = parser.add_argument_group("model, by its folder (-m) or as for nnUNetv2_predict (-d and -c)")
    group.add_argument("-m", type=Path, metavar="FOLDER", help="the folder that holds plans.json and fold_0")
    group.add_argument("-d", metavar="DATASET", help="dataset name or id, in nnUNet_results")
    group.add_argument("-c", metavar="CONFIGURATION", default="3d_fullres", help="default: 3d_fullres")
    group.add_argument("-tr", metavar="TRAINER", default=TRAINER, help=f"default: {TRAINER}")
    group.add_argument("-p", metavar="PLANS", default=STOCK_PLANS, help=f"default: {STOCK_PLANS}")


def add_accept_argument(parser: argparse._ActionsContainer, *more: str) -> None:
    """`--accept`: refusals that are to be warnings; `more` are checks that only this command makes."""
    parser.add_argument(
        "--accept", nargs="+", action="extend", default=[], choices=[*ACCEPTABLE, *more], metavar="CHECK",
        help=f"make warnings of these checks' refusals, and record it: {', '.join([*ACCEPTABLE, *more])}",
    )  # fmt: skip


def model_folder(options: argparse.Namespace) -> Path:
    """The folder that `-m`, or `-d`, `-tr`, `-p` and `-c`, name.

    Raises:
        InputError: when neither or both are given, or when nnU-Net knows no such dataset.
    """
    if (options.m is None) == (options.d is None):
        raise InputError("name the model either by its folder (-m) or by its dataset (-d, with -tr, -p and -c)")
    if options.m is not None:
        return Path(options.m)
    results = os.environ.get(RESULTS)
    if not results:
        raise InputError("-d looks in nnUNet_results, which is not set. Set it, or name the model's folder with -m")
    prefix = f"Dataset{int(options.d):03d}_" if options.d.isdecimal() else None
    with reading(Path(results)):
        # Compared by name: a path or a pattern would lead elsewhere.
        entries = Path(results).iterdir() if Path(results).is_dir() else ()
        named = (entry for entry in entries if (entry.name.startswith(prefix) if prefix else entry.name == options.d))
        found = [entry for entry in named if entry.is_dir()]
    if len(found) != 1:
        raise InputError(
            f"-d {options.d}: {len(found)} such datasets in {results}, expected one; -d takes a dataset's name or id. "
            "Correct it, or name the model's folder with -m"
        )
    return found[0] / f"{options.tr}__{options.p}__{options.c}"


def check_cases(
    cases: Sequence[InputCase], model: ModelDescription, accepted: Sequence[str] = (), progress: bool = True
) -> list[CaseFindings]:
    """Checks all cases, two at a time, in their order."""
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda case: check_case(case, model, accepted), cases)
        return list(tqdm(results, "checking images", len(cases), disable=not progress or len(cases) < 2))


def report(results: Sequence[CaseFindings], model: ModelDescription, accepted: Sequence[str]) -> dict[str, Any]:
    """The JSON of `--json`."""
    return {
        "format": "swinfuse-check",
        "format_version": 1,
        "verdict": worst(results).name.lower(),
        "model": str(model.folder),
        "dataset": model.dataset,
        "versions": {PACKAGE: version(PACKAGE)},
        "accepted": list(accepted),
        "cases": [result.to_dict() for result in results],
    }


def print_findings(results: Sequence[CaseFindings]) -> None:
    """Prints every case, the checks that were left out, and how many cases passed."""
    for result in results:
        print(result.to_text())
    for name, reason in {name: why for result in results for name, why in result.not_performed.items()}.items():
        print(f"not checked [{name}]: {reason}")
    counts = [sum(result.severity is severity for result in results) for severity in Severity]
    print(f"{len(results)} case(s): {counts[0]} passed, {counts[1]} with warnings, {counts[2]} refused")


if __name__ == "__main__":
    main()
