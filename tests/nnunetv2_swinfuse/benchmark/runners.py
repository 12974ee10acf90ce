"""A runner of the raw dataset of 12 cases."""

from nnunetv2_swinfuse.benchmark.cells import Workspace
from nnunetv2_swinfuse.benchmark.runner import Runner
from nnunetv2_swinfuse.benchmark.splits import store_splits

from .tables import make_experiment


def make_runner(tmp_path, workers=1, **changes):
    root = tmp_path / "work"
    runner = Runner(make_experiment(**{"test_cases": 4, **changes}), Workspace(root, root / "results"), workers)
    store_splits(runner.workspace.results, runner.splits)
    return runner
