"""Scripts for a cluster: one job that prepares, one array with a task for each cell, one job that reports."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.files import write_text


def write_slurm(folder: Path, command: Sequence[str], cells: Sequence[Cell], device: str) -> Path:
    """Writes `cells.sbatch` and `submit.sh`; returns the latter.

    Args:
        folder: of the experiment.
        command: `swinfuse_benchmark` with the experiment and its folders.
        cells: that are not done.
        device: `cuda` asks for one GPU a task.
    """
    typed = shlex.join(command)
    options = "#SBATCH --gres=gpu:1\n" if device == "cuda" else ""
    names = "\n".join(f"    {shlex.quote(cell.name)}" for cell in cells)
    script = folder / "cells.sbatch"
    write_text(
        script,
        f"""#!/usr/bin/env bash
#SBATCH --job-name=swinfuse_benchmark
#SBATCH --array=0-{len(cells) - 1}
#SBATCH --output={folder}/slurm_%A_%a.txt
{options}# Add what your cluster wants (partition, account, time, cores, modules), and nnU-Net's path variables
# if they are not set.
set -euo pipefail
cells=(
{names}
)
srun {typed} --cell "${{cells[$SLURM_ARRAY_TASK_ID]}}"
""",
    )
    submit = folder / "submit.sh"
    report = f'sbatch --dependency="afterany:$trained" --output={folder}/slurm_report.txt'
    gpu = " --gres=gpu:1" if device == "cuda" else ""
    write_text(
        submit,
        f"""#!/usr/bin/env bash
# Prepares (preprocessing, pretraining), then trains the cells, then writes the report.
set -euo pipefail
prepared=$(sbatch --parsable{gpu} --output={folder}/slurm_prepare.txt --wrap {shlex.quote(f"{typed} --prepare_only")})
trained=$(sbatch --parsable --dependency="afterok:$prepared" {shlex.quote(str(script))})
{report} --wrap {shlex.quote(f"{typed} --report_only")}
""",
    )
    submit.chmod(0o755)
    return submit
