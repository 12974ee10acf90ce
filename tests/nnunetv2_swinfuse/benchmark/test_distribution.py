import json

import pytest

from nnunetv2_swinfuse.benchmark.distribution import (
    PAPER,
    dataset_modality,
    distribution_table,
    pretraining_modalities,
)
from nnunetv2_swinfuse.benchmark.tables import markdown_report

from .tables import COMMAND, DATASET, analysed, make_experiment, noisy

ONLY_CT = {"name": "only_ct", "like": "swinfuse", "pretraining": {"modalities": ["CT"]}}
ARMS = ["swinfuse", "ct", "mr", "scratch", "nnunet", ONLY_CT]
PRETRAINING = {"collections": ["Pairs"], "steps": 1}


@pytest.fixture
def transfer(raw, tmp_path):
    """Experiment and analysis: the dataset is MR, and swinfuse is better than all others by 0.1."""
    pairs = [["swinfuse", "ct"], ["swinfuse", "mr"], ["swinfuse", "scratch"]]
    experiment = make_experiment(arms=ARMS[:4], pretraining=PRETRAINING, comparisons=pairs)

    def values(cell, cases):
        return noisy(cell, cases, 0.1 * (cell.arm == "swinfuse"), run=0.0, rest=0.0)

    experiment, _, analysis = analysed(tmp_path, values, experiment)
    return experiment, analysis


def test_what_arms_are_pretrained_on():
    experiment = make_experiment(arms=ARMS, pretraining=PRETRAINING)
    known = {arm.name: pretraining_modalities(experiment, arm) for arm in experiment.arms}
    assert known == {
        "swinfuse": ("CT", "MR"), "ct": ("CT",), "mr": ("MR",), "scratch": (), "nnunet": (), "only_ct": ("CT",)
    }  # fmt: skip


@pytest.mark.slow
def test_the_modality_of_a_dataset(raw):
    assert dataset_modality(DATASET) == "MR"
    assert dataset_modality("Dataset902_Gone") is None
    for names, modality in (({"0": "CT"}, "CT"), ({"0": "CT", "1": "T1"}, None), ({"0": "smell"}, None)):
        content = json.loads((raw / "dataset.json").read_text())
        (raw / "dataset.json").write_text(json.dumps({**content, "channel_names": names}))
        assert dataset_modality(DATASET) == modality


@pytest.mark.slow
def test_pairs_stand_on_the_side_of_their_second_arms_modality(transfer):
    experiment, analysis = transfer
    rows = {row["second"]: row for row in analysis.distribution.to_dict("records")}
    # The twin from scratch was pretrained on nothing.
    assert list(rows) == ["ct", "mr"]
    assert rows["ct"]["in distribution"] == rows["mr"]["out of distribution"] == "-"
    mean = analysis.groups[0].scores.run_means("mr").mean()
    expected = f"{DATASET}: {mean + 0.1:.3f} against {mean:.3f}, +0.1000, that is {10 / mean:+.1f} % ("
    assert rows["mr"]["in distribution"].startswith(expected)
    assert rows["ct"]["out of distribution"].startswith(expected)
    text = markdown_report(experiment, analysis, COMMAND)
    assert text.index(PAPER) < text.index("## Means")


@pytest.mark.slow
def test_nothing_is_said_of_a_dataset_of_unknown_modality(transfer):
    experiment, analysis = transfer
    table = distribution_table(experiment, analysis.comparisons["Dice"], {DATASET: None}, analysis.means)
    assert table.empty
