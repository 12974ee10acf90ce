"""Arms that were pretrained on one modality, compared on datasets of that modality and of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from nnunetv2_swinfuse.benchmark.arms import Arm
from nnunetv2_swinfuse.benchmark.comparison import Comparison
from nnunetv2_swinfuse.benchmark.experiment import Experiment
from nnunetv2_swinfuse.benchmark.raw_dataset import find_dataset
from nnunetv2_swinfuse.errors import BenchmarkError, InputError

COLUMNS = ("first", "second", "labels", "in distribution", "out of distribution")
PAPER = (
    "The paper (arXiv 2405.12781) reports a loss of 1 to 2 % against pretraining on the dataset's own modality alone "
    "(in distribution), and a gain of up to 27 % against pretraining on the other one (out of distribution). A "
    "relative change is the difference divided by the second arm's mean; its 95 % interval covers the error of both."
)


def pretraining_modalities(experiment: Experiment, arm: Arm) -> tuple[str, ...]:
    """The modalities that an arm's encoder learnt from; empty where it has no pretrained weights or a file's."""
    from pretraining.collections.collection import DOMAINS
    from pretraining.preset_files import load_preset

    run = experiment.pretraining_run(arm, experiment.seeds[0])
    if run is None or experiment.pretraining is None or not arm.pretrained:
        return ()
    preset = load_preset(experiment.pretraining.preset, run.recipe)
    return tuple({**preset, **run.settings}.get("modalities", DOMAINS))


def dataset_number(dataset: str) -> int:
    """501 of `Dataset501_Hippocampus`."""
    return int(dataset.removeprefix("Dataset").split("_")[0])


def dataset_modality(dataset: str) -> str | None:
    """`CT` or `MR`; None where its channels are of both, of neither, or it is not on this machine."""
    from pretraining.collections.modalities import ModalityMap

    try:
        names = find_dataset(dataset_number(dataset)).channel_names
        found = {ModalityMap.from_words([]).domain(name, dataset) for name in names}
    except (BenchmarkError, InputError):
        return None
    return found.pop() if len(found) == 1 else None


def distribution_table(
    experiment: Experiment, comparisons: Sequence[Comparison], modalities: Mapping[str, str | None], means: pd.DataFrame
) -> pd.DataFrame:
    """One row for each declared pair whose second arm knows one modality; see :data:`COLUMNS`.

    Args:
        experiment: says what its arms are pretrained on.
        comparisons: of Dice.
        modalities: of the datasets, by name.
        means: as `analysis.means_table` makes them.
    """
    foreground = means[(means["metric"] == "Dice") & (means["class"] == "foreground")]
    of_arm = foreground.set_index(["dataset", "labels", "arm"])["mean"]
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for comparison in comparisons:
        known = pretraining_modalities(experiment, experiment.arm(comparison.second))
        modality = modalities.get(comparison.dataset)
        if len(known) != 1 or modality is None:
            continue
        first, second = (
            of_arm[comparison.dataset, comparison.labels, arm] for arm in (comparison.first, comparison.second)
        )
        text = _cell(comparison, first, second)
        row = rows.setdefault((comparison.first, comparison.second, comparison.labels), {"in": [], "out": []})
        row["in" if modality in known else "out"].append(text)
    return pd.DataFrame(
        [(*pair, "; ".join(row["in"]) or "-", "; ".join(row["out"]) or "-") for pair, row in rows.items()],
        columns=list(COLUMNS),
    )


def _cell(comparison: Comparison, first: float, second: float) -> str:
    change = comparison.relative
    values = (change.mean, *change.interval()) if change else ()
    relative = [f"{100 * value:+.1f}" for value in values] or ["?"] * 3
    return (
        f"{comparison.dataset}: {first:.3f} against {second:.3f}, {comparison.estimate.mean:+.4f}, that is "
        f"{relative[0]} % ({relative[1]} to {relative[2]} %), {comparison.verdict}"
    )
