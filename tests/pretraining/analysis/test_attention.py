import math

import pytest
import torch

from pretraining.analysis.attention import (
    attended_distance,
    attention_of_crops,
    cell_centres,
    difference,
    head_difference,
    pair_attention,
)

from . import synthetic_analysis as synthetic


def one_hot(*keys, heads=1, cells=4):
    """Attention weights (1, heads, queries, cells) of a layer whose query i attends to keys[i] alone."""
    rows = torch.nn.functional.one_hot(torch.tensor(keys), cells).float()
    return rows.expand(1, heads, *rows.shape)


def test_the_difference_is_zero_for_equal_rows_and_one_for_disjoint_ones():
    assert difference([one_hot(0, 1)], [one_hot(0, 1)]) == pytest.approx(0, abs=1e-6)
    assert difference([one_hot(0, 1)], [one_hot(2, 3)]) == pytest.approx(1, abs=1e-5)
    assert difference([one_hot(0, 1)], [one_hot(0, 3)]) == pytest.approx(0.5, abs=1e-5)


def test_heads_are_compared_in_pairs():
    heads = torch.cat([one_hot(0), one_hot(0), one_hot(1)], 1)
    # Of three pairs, two differ.
    assert head_difference([heads]) == pytest.approx(2 / 3, abs=1e-5)
    assert head_difference([one_hot(0)]) == pytest.approx(0, abs=1e-6)


def test_centres_of_cells_are_in_the_middle_of_their_part_of_the_map():
    centres = cell_centres((4, 2, 6), (2, 2, 3), (1.0, 3.0, 0.5))
    assert centres[0].tolist() == [1.0, 1.5, 0.5]
    assert centres[-1].tolist() == [3.0, 4.5, 2.5]
    assert len(centres) == 12


def test_the_distance_of_attention_to_one_cell_is_that_of_the_cells():
    centres = cell_centres((1, 1, 4), (1, 1, 4), (1.0, 1.0, 2.0))
    queries = torch.tensor([0, 3])
    assert attended_distance([one_hot(0, 3)], queries, centres) == (0, pytest.approx(3.0))
    # From the first cell to the last, and from the last one to the one before.
    assert attended_distance([one_hot(3, 2)], queries, centres)[0] == pytest.approx((6 + 2) / 2)


def test_blocks_with_equal_weights_and_images_attend_alike():
    network = synthetic.network()
    module = network.encoder.domain_invariance
    module.mr_block.load_state_dict(module.ct_block.state_dict())
    (_, same), *_ = attention_of_crops(network, synthetic.crop_sets(same=True))
    assert all(same[name] == pytest.approx(0, abs=1e-6) for name in ("registered", "same image", "same block"))
    assert same["heads"] > 0.001
    assert same["other partner"] > 1e-5
    _, other = attention_of_crops(network, synthetic.crop_sets())[0]
    assert other["registered"] == pytest.approx(other["same block"], rel=1e-4)
    assert other["registered"] > 1e-5
    assert other["same image"] == pytest.approx(0, abs=1e-6)


def test_blocks_with_other_weights_differ_also_on_the_same_image():
    _, measures = attention_of_crops(synthetic.network(), synthetic.crop_sets(same=True))[0]
    assert measures["same image"] == pytest.approx(measures["registered"], rel=1e-4)
    assert measures["registered"] > 1e-4
    assert measures["same block"] == pytest.approx(0, abs=1e-6)


def test_queries_that_attend_to_everything_are_uniform():
    network = synthetic.network()
    for block in (network.encoder.domain_invariance.ct_block, network.encoder.domain_invariance.mr_block):
        for layer in block.layers:
            torch.nn.init.zeros_(layer.query.weight)
    for _, measures in attention_of_crops(network, synthetic.crop_sets()):
        assert measures["entropy"] == pytest.approx(1, abs=1e-5)
        assert measures["distance"] == pytest.approx(1, abs=1e-5)
        assert measures["tissue"] == pytest.approx(1, abs=1e-5)
        assert measures["registered"] == pytest.approx(0, abs=1e-6)


def test_pairs_without_tissue_are_left_out():
    crops = synthetic.crop_sets()
    crops.first.crops[1].image.zero_()
    assert [patient for patient, _ in attention_of_crops(synthetic.network(), crops)] == ["p0", "p2", "p3"]


def test_queries_show_tissue_in_the_other_patients_mr_too():
    network = synthetic.network()
    crops = synthetic.crop_sets()
    whole = dict(attention_of_crops(network, crops))
    # The MR of p1 is blank, but for a part; it is the other MR of p2.
    image = crops.second.crops[1].image
    image[..., : image.shape[-1] // 2] = 0
    restricted = dict(attention_of_crops(network, crops))
    # What does not look at that MR at all changes only because fewer queries count.
    assert restricted["p2"]["heads"] != pytest.approx(whole["p2"]["heads"], abs=1e-9)
    assert restricted["p3"]["heads"] == pytest.approx(whole["p3"]["heads"], abs=1e-9)
    image.zero_()
    assert sorted(dict(attention_of_crops(network, crops))) == ["p0", "p3"]


def test_the_other_patient_is_another_one():
    network = synthetic.network()
    # The last of five crops is of the first patient again; before the first crop comes the second patient's last one.
    (_, repeated), *_ = attention_of_crops(network, synthetic.crop_sets(count=5, patients=2))
    shorter = synthetic.crop_sets(count=4, patients=2)
    (_, measures), *_ = attention_of_crops(network, shorter)
    assert repeated["other partner"] == pytest.approx(measures["other partner"], abs=1e-6)
    assert repeated["unregistered"] == pytest.approx(measures["unregistered"], abs=1e-6)


def test_attention_of_a_pair_has_a_row_for_each_cell():
    fused = pair_attention(synthetic.network(), synthetic.crop_sets(), 2)
    cells = math.prod(fused.grid)
    assert [tuple(weights.shape) for weights in fused.ct_weights] == [(1, 2, cells, cells)]
    assert torch.allclose(fused.mr_weights[0].sum(-1), torch.ones(1, 2, cells))
