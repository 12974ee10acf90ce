from dataclasses import replace

import pytest
import torch

from pretraining.analysis import layer_probe
from pretraining.voxel_probe.results import Results

from ..voxel_probe import synthetic_labelled
from . import synthetic_analysis as synthetic


@pytest.fixture
def probe(monkeypatch, tmp_path):
    loaded = []

    def load(case, dataset, *_):
        loaded.append(case.name)
        return synthetic_labelled.case(case.name, int(case.name[1:]))

    def maps(network, image):
        # One layer that shows the classes, and one that shows nothing.
        return {"voxels": image, "nothing": torch.zeros(1, 1, 2, 2, 2)}

    monkeypatch.setattr(layer_probe, "load_case", load)
    monkeypatch.setattr(layer_probe, "layer_maps", maps)
    plan = synthetic_labelled.plan(synthetic_labelled.dataset())
    results = Results(tmp_path / "organs.csv")

    def run(name="ours", split=0):
        of_split = replace(plan, seed=split)
        return layer_probe.probe_layers(
            name, 0, synthetic.network(), "weights", of_split, None, (16, 16, 16), (2, 2, 2), tmp_path, results
        )  # fmt: skip

    return run, loaded, results


def test_layers_that_show_organs_score_and_others_do_not(probe):
    run, loaded, results = probe
    scores = run()
    (voxels,), (nothing,) = scores["voxels"], scores["nothing"]
    assert voxels.task == "501"
    assert voxels.labelled == 3
    assert voxels.dice > nothing.dice + 0.3
    assert voxels.auc > 0.95
    assert nothing.auc < 0.9
    # Every case is loaded once, not once for every layer.
    assert len(loaded) == len(set(loaded)) == 6
    assert {row.key.arm for row in results.rows} == {"ours, voxels", "ours, nothing"}


def test_scores_that_exist_are_not_computed_again(probe):
    run, loaded, _ = probe
    first = run()
    loaded.clear()
    # The table's file has six digits.
    for layer, scores in run().items():
        assert [score.dice for score in scores] == pytest.approx([score.dice for score in first[layer]], rel=1e-4)
    assert len(loaded) <= 1


def test_rows_of_another_split_do_not_count(probe):
    run, _, results = probe
    expected = run()
    # The table keeps what earlier calls measured with another --split_seed.
    results.add([replace(row, key=replace(row.key, split=1), value=0.0) for row in results.rows])
    for layer, scores in run().items():
        assert [score.dice for score in scores] == pytest.approx([score.dice for score in expected[layer]], rel=1e-4)
    assert [score.dice for score in run(split=1)["voxels"]] == [0.0]


def test_two_datasets_are_a_task_in_words():
    assert layer_probe.OrganScore("510", "511", 4, 0.5, 0.5).task == "510 to 511"
