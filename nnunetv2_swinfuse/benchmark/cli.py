"""`swinfuse_benchmark`: from raw data to a verdict."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase

from nnunetv2_swinfuse.benchmark import signals
from nnunetv2_swinfuse.benchmark.cells import FAILURE, Cell, Workspace, read_results
from nnunetv2_swinfuse.benchmark.comparability import check_records
from nnunetv2_swinfuse.benchmark.comparison import smallest_wilcoxon_p
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.forecast import Forecast, forecast
from nnunetv2_swinfuse.benchmark.kept_experiment import EXPERIMENT, check_experiment, records
from nnunetv2_swinfuse.benchmark.options import build_parser, chosen_experiment, output_folder, resume_command
from nnunetv2_swinfuse.benchmark.runner import Runner
from nnunetv2_swinfuse.benchmark.slurm import write_slurm
from nnunetv2_swinfuse.benchmark.splits import repeated_draws
from nnunetv2_swinfuse.errors import BenchmarkError, errors_without_traceback
from pretraining.run_time import format_duration


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0; 1 when a cell failed; 2 on bad input; 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signals.stop_on_termination()
    options = build_parser().parse_args(words)
    try:
        with errors_without_traceback("swinfuse_benchmark"):
            raise SystemExit(run(options))
    except KeyboardInterrupt:
        print("swinfuse_benchmark: interrupted; run the same command again to resume.", file=sys.stderr)
        raise SystemExit(130) from None


def run(options: argparse.Namespace) -> int:
    """Does what the options ask for; returns the exit status."""
    experiment = chosen_experiment(options)
    if options.num_workers < 1:
        raise BenchmarkError(f"-num_workers is {options.num_workers}; expected at least 1")
    root = output_folder(options, experiment)
    workspace = Workspace(root, (options.results or root / "results").absolute())
    runner = Runner(experiment, workspace, options.num_workers)
    check_experiment(experiment, workspace)
    results = read_results(workspace, runner.cells)
    check_records(experiment, runner.cells, results)
    command = typed_command(options, workspace)
    if options.list:
        print(listing(runner, command))
        return 0
    if not (options.report_only or options.cell):
        for warning in warnings_before(runner):
            print(warning, flush=True)
    # Both, as cells can be used with another results folder.
    for path in records(workspace):
        write_json(path, experiment.to_dict())
    if options.add_results:
        from nnunetv2_swinfuse.benchmark.added_results import add_results

        cells = find_cells(runner.cells, options.cell) if options.cell else runner.cells
        for folder in options.add_results:
            added = add_results(folder, runner, cells)
            print(f"{folder}: {len(added)} {'cell' if len(added) == 1 else 'cells'} added to {workspace.results}")
        return 0
    if options.slurm:
        waiting = [cell for cell in runner.cells if cell.name not in results]
        if not waiting:
            raise BenchmarkError("--slurm: all cells are done; write the report with --report_only")
        print(f"Look at {root / 'cells.sbatch'}, then: {write_slurm(root, command, waiting, experiment.device)}")
        return 0
    failed = 0
    if options.report_only:
        runner.keep_finished()
    else:
        cells = find_cells(runner.cells, options.cell) if options.cell else runner.cells
        waiting = [cell for cell in cells if cell.name not in results]
        if options.prepare_only or waiting:
            runner.prepare(waiting)
        if options.prepare_only:
            runner.pretrain(waiting)
            print(f"Prepared: {root}")
            return 0
        outcome = runner.run(cells, options.minutes)
        failed = len(outcome.failed)
        if outcome.left:
            print(f"{len(outcome.left)} cells are left; run the same command again to resume.")
        if options.cell:
            return int(bool(failed))
    from nnunetv2_swinfuse.benchmark.report import write_report

    for path in write_report(experiment, workspace, runner.cells, command, pictures=not options.without_pictures):
        print(path)
    return int(bool(failed))


def typed_command(options: argparse.Namespace, workspace: Workspace) -> list[str]:
    """The command that continues this experiment from any folder."""
    file = options.experiment or workspace.results / EXPERIMENT
    command = resume_command(file, workspace, options.results is not None)
    return [*command, "--without_pictures"] if options.without_pictures else command


def find_cells(cells: Sequence[Cell], pattern: str) -> list[Cell]:
    """The cells whose name is `pattern`, or that it matches as a shell pattern (`*`, `?`, `[...]`).

    Raises:
        BenchmarkError: when there is none.
    """
    found = [cell for cell in cells if fnmatchcase(cell.name, pattern)]
    if not found:
        raise BenchmarkError(
            f"--cell {pattern}: no such cell; --list shows all {len(cells)}, such as {cells[0].name}. A pattern is "
            "matched against the whole name"
        )
    return found


def listing(runner: Runner, command: Sequence[str]) -> str:
    """All cells, their states and durations, and what the rest will cost."""
    workspace = runner.workspace
    results = read_results(workspace, runner.cells)
    lines = []
    for cell in runner.cells:
        state = workspace.state(cell, results)
        note = ""
        if state == "done":
            note = format_duration(results[cell.name]["seconds"])
        elif state == "failed":
            note = json.loads((workspace.cell(cell) / FAILURE).read_text())["message"].splitlines()[0]
        lines.append(f"{state:<8} {cell.name}  {note}".rstrip())
    length = runner.experiment.length
    lines.append(
        f"\n{len(runner.cells)} cells, {sum(cell.name in results for cell in runner.cells)} done; each trains "
        f"{length.epochs} epochs of {length.iterations} iterations."
    )
    lines += warnings_before(runner)
    left = forecast(runner.experiment, workspace, runner.datasets, runner.cells, results)
    lines += forecast_lines(left)
    lines.append(f"Run it: {shlex.join(command)}")
    return "\n".join(lines)


def warnings_before(runner: Runner) -> list[str]:
    """Of datasets with too few test cases for any verdict of this experiment, and of seeds that are one run."""
    experiment, lines = runner.experiment, []
    family = len(experiment.comparisons) * len(experiment.labels) * len(runner.datasets)
    for dataset, drawn in runner.splits.items():
        cases = len({case for split in drawn.values() for case in split.test})
        if smallest_wilcoxon_p(cases, family) >= experiment.alpha:
            lines.append(
                f"{dataset}: no difference can be shown. With {cases} test cases in a family of {family} comparisons "
                f"the Wilcoxon test cannot reach p < {experiment.alpha:g}: test more cases or compare less."
            )
    repeated = repeated_draws(experiment, runner.splits)
    return [*lines, *(f"{sentence}. Add other seeds, or use them instead." for sentence in repeated)]


def forecast_lines(left: Forecast) -> list[str]:
    """How long the remaining cells will take, kind by kind and in total."""
    if not left.waiting:
        return []
    lines = ["Left:"]
    for name, seconds in left.pretraining.items():
        told = "unknown" if seconds is None else f"about {format_duration(seconds)}"
        lines.append(f"  pretraining {name}: {told}")
    for kind, count in left.waiting.items():
        if kind in left.measured:
            told = f"{format_duration(left.measured[kind])} each (measured)"
        elif kind in left.estimated:
            told = f"about {format_duration(left.estimated[kind])} each (estimated)"
        else:
            told = f"unknown until the first has run ({left.unknown[kind]})"
        lines.append(f"  {kind[0]} on {kind[1]}: {count} {'cell' if count == 1 else 'cells'}, {told}")
    if left.estimated or left.measured:
        lines.append(
            f"Together {format_duration(left.seconds)}, one after another"
            + (", and what is unknown" if left.unknown or None in left.pretraining.values() else "")
            + (". Estimates count operations: expect a factor of three either way." if left.estimated else ".")
        )
    return lines


if __name__ == "__main__":
    main()
