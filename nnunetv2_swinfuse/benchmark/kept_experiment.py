"""Which experiment results belong to, and what may change in it between sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.benchmark.arms import begins_pretrained
from nnunetv2_swinfuse.benchmark.cells import Workspace
from nnunetv2_swinfuse.benchmark.experiment import Experiment, load_experiment
from nnunetv2_swinfuse.benchmark.table import read_kept
from nnunetv2_swinfuse.errors import BenchmarkError

EXPERIMENT = "experiment.json"
# A user's own file in the output folder may have that name.
OF_CELLS = "experiment_of_cells.json"
# These fields may change between sessions: they select and compare cells, but do not change what a cell trains.
FREE = {
    "name", "datasets", "arms", "labels", "seeds", "folds", "comparisons", "no_loss", "baseline", "alpha",
    "transductive",
}  # fmt: skip


def records(workspace: Workspace) -> tuple[Path, Path]:
    """Files that say which experiment the results, and the cells in the output folder, are of."""
    return workspace.results / EXPERIMENT, workspace.root / OF_CELLS


def check_experiment(experiment: Experiment, workspace: Workspace) -> None:
    """Refuses an experiment whose cells would differ from those of the same name that are kept, or begun.

    Raises:
        BenchmarkError: naming what changed.
    """
    now = experiment.to_dict()
    for path in records(workspace):
        if not path.is_file():
            continue
        before = load_experiment(path).to_dict()
        changed = changed_fields(before, now, lambda: read_kept(workspace.results).values())
        arms = {arm["name"]: arm for arm in before["arms"]}
        changed += [f"arm {arm['name']}" for arm in now["arms"] if arms.get(arm["name"], arm) != arm]
        if changed:
            raise BenchmarkError(
                f"{path.parent}: its results are of an experiment that differs in {', '.join(changed)}. Use another "
                "name, or other folders (-o, --results)"
            )


def changed_fields(
    before: Mapping[str, Any], now: Mapping[str, Any], results: Callable[[], Iterable[Mapping[str, Any]]]
) -> list[str]:
    """Fields of two experiments that differ, such that a cell would be another training.

    Another budget of pretraining is no difference as long as no cell began with what an encoder had learnt: the arm
    `scratch` takes only the encoder's sizes.

    Args:
        before, now: :meth:`Experiment.to_dict` of both.
        results: reads the records of the cells that both are to have; called only where they matter.
    """
    changed = [name for name in now if name not in FREE and before.get(name) != now[name]]
    if "pretraining" in changed and _same_but_budget(before, now) and not any(map(_began_pretrained, results())):
        changed.remove("pretraining")
    return changed


def _same_but_budget(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two experiments pretrain alike, apart from the number of steps or minutes."""
    first, second = (
        {name: value for name, value in (content["pretraining"] or {}).items() if name not in ("steps", "minutes")}
        for content in (before, now)
    )
    return first == second


def _began_pretrained(result: Mapping[str, Any]) -> bool:
    """Whether a cell began with weights that an encoder had learnt."""
    arm = result["arm"]
    return begins_pretrained(arm["trainer"], arm.get("recipe", ""), arm.get("encoder", ""))
