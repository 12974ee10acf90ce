import os
import subprocess

from nnunetv2_swinfuse.benchmark.slurm import write_slurm

from .runners import make_runner


def test_slurm_scripts_run_every_cell_once(raw, tmp_path):
    runner = make_runner(tmp_path)
    log = tmp_path / "calls.txt"
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {
        "srun": f'echo "$@" >> {log}',
        "sbatch": f'echo "sbatch $*" >> {log}; echo 77',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    submit = write_slurm(tmp_path, ["swinfuse_benchmark", "a b.json"], runner.cells, "cuda")
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    script = tmp_path / "cells.sbatch"
    assert "#SBATCH --array=0-5\n" in script.read_text()
    assert "#SBATCH --gres=gpu:1\n" in script.read_text()
    for task in range(6):
        subprocess.run(["bash", script], env={**environment, "SLURM_ARRAY_TASK_ID": str(task)}, check=True)
    calls = log.read_text().splitlines()
    assert calls == [f"swinfuse_benchmark a b.json --cell {cell.name}" for cell in runner.cells]
    log.unlink()
    subprocess.run(["bash", submit], env=environment, check=True)
    prepare, train, report = log.read_text().splitlines()
    assert "--prepare_only" in prepare
    assert f"--dependency=afterok:77 {script}" in train
    assert "--dependency=afterany:77" in report
    assert "--report_only" in report


def test_a_cpu_needs_no_accelerator(raw, tmp_path):
    submit = write_slurm(tmp_path, ["swinfuse_benchmark"], make_runner(tmp_path).cells, "cpu")
    assert "--gres" not in submit.read_text() + (tmp_path / "cells.sbatch").read_text()
