"""`swinfuse_benchmark`: from raw data to a verdict."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_swinfuse.benchmark import signals
from nnunetv2_swinfuse.benchmark.cells import FAILURE, Cell, Workspace, read_results
from nnunetv2_swinfuse.benchmark.experiment import Experiment, from_dict
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.options import build_parser, chosen_experiment, output_folder
from nnunetv2_swinfuse.benchmark.runner import Runner, estimate
from nnunetv2_swinfuse.benchmark.slurm import write_slurm
from nnunetv2_swinfuse.errors import BenchmarkError, errors_without_traceback
from pretraining.run_time import format_duration

EXPERIMENT = "experiment.json"
# May change between sittings: what cells there are, and how they are compared; not what a cell is.
FREE = {
    "name", "datasets", "arms", "labels", "seeds", "folds", "comparisons", "baseline", "alpha", "transductive"
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0; 1 when a cell failed; 2 on bad input; 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signals.stop_on_termination()
    options = build_parser().parse_args(words)
    try:
        with errors_without_traceback("swinfuse_benchmark"):
            raise SystemExit(run(options))
    except KeyboardInterrupt:
        print("swinfuse_benchmark: interrupted; the same command goes on.", file=sys.stderr)
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
    command = typed_command(options, workspace)
    if options.list:
        print(listing(runner, command))
        return 0
    write_json(workspace.results / EXPERIMENT, experiment.to_dict())
    if options.slurm:
        results = read_results(workspace, runner.cells)
        waiting = [cell for cell in runner.cells if cell.name not in results]
        if not waiting:
            raise BenchmarkError("--slurm: all cells are done; write the report with --report_only")
        print(f"Look at {root / 'cells.sbatch'}, then: {write_slurm(root, command, waiting, experiment.device)}")
        return 0
    failed = 0
    if not options.report_only:
        cells = [find_cell(runner.cells, options.cell)] if options.cell else runner.cells
        results = read_results(workspace, cells)
        if options.prepare_only or any(cell.name not in results for cell in cells):
            runner.prepare()
        if options.prepare_only:
            print(f"Prepared: {root}")
            return 0
        outcome = runner.run(cells, options.minutes)
        failed = len(outcome.failed)
        if outcome.left:
            print(f"{len(outcome.left)} cells are left for the next sitting; the same command goes on.")
        if options.cell:
            return int(bool(failed))
    from nnunetv2_swinfuse.benchmark.report import write_report

    for path in write_report(experiment, workspace, runner.cells, command, pictures=not options.without_pictures):
        print(path)
    return int(bool(failed))


def check_experiment(experiment: Experiment, workspace: Workspace) -> None:
    """Refuses an experiment whose cells would be others under the names of those that are kept.

    Raises:
        BenchmarkError: naming what changed.
    """
    path = workspace.results / EXPERIMENT
    if path.is_file():
        before = from_dict(json.loads(path.read_text()), str(path)).to_dict()
        now = experiment.to_dict()
        changed = [name for name in now if name not in FREE and before.get(name) != now[name]]
        arms = {arm["name"]: arm for arm in before["arms"]}
        changed += [f"arm {arm['name']}" for arm in now["arms"] if arms.get(arm["name"], arm) != arm]
        if changed:
            raise BenchmarkError(
                f"{workspace.results}: its results are of an experiment that differs in {', '.join(changed)}. Use "
                "another name, or other folders (-o, --results)"
            )


def typed_command(options: argparse.Namespace, workspace: Workspace) -> list[str]:
    """What goes on with this experiment, from any folder."""
    file = options.experiment or workspace.results / EXPERIMENT
    command = ["swinfuse_benchmark", str(Path(file).absolute()), "-o", str(workspace.root)]
    return command if options.results is None else [*command, "--results", str(workspace.results)]


def find_cell(cells: Sequence[Cell], name: str) -> Cell:
    """Raises BenchmarkError when no cell has this name."""
    for cell in cells:
        if cell.name == name:
            return cell
    raise BenchmarkError(f"--cell {name}: no such cell; --list shows all {len(cells)}, such as {cells[0].name}")


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
    waiting = [cell for cell in runner.cells if cell.name not in results]
    length = runner.experiment.length
    seconds, unknown = estimate(runner.cells, results)
    lines.append(
        f"\n{len(runner.cells)} cells, {len(runner.cells) - len(waiting)} done; each trains {length.epochs} epochs of "
        f"{length.iterations} iterations."
    )
    if waiting and len(unknown) < len({cell.kind for cell in waiting}):
        lines.append(f"Measured kinds: {format_duration(seconds)} to go for one cell after another.")
    if unknown:
        kinds = ", ".join(f"{arm} on {dataset}" for arm, dataset in unknown)
        lines.append(f"Not measured yet (their first cell will tell): {kinds}.")
    lines.append(f"Run it: {shlex.join(command)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
