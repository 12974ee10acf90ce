import math

import pytest
import torch

from pretraining.losses.density import density_matching
from pretraining.losses.vicreg import covariance_loss, variance_loss
from pretraining.model import Level
from pretraining.processes import SINGLE_PROCESS
from pretraining.randomness import sample_generators
from pretraining.token_statistics import LevelSamples, density_health, matched_levels, update_averages

from .synthetic import tiny

GRID = (2, 2, 4)


def samples_of(tokens, **changes):
    """Samples of levels with the given tokens by modality, all of them tissue."""
    images = {name: {m: torch.randn(len(t), 1, 8, 8, 16) for m, t in of.items()} for name, of in tokens.items()}
    levels = {name: Level(of, GRID) for name, of in tokens.items()}
    count = min(len(t) for of in tokens.values() for t in of.values())
    configuration = tiny(density_samples=1000, **changes)
    generators = sample_generators(0, 0, 0, range(count))
    return LevelSamples.draw(levels, images, configuration, generators, range(count), SINGLE_PROCESS)


def test_all_tokens_of_small_maps_are_compared():
    torch.manual_seed(0)
    ct, mr = torch.randn(2, 16, 6), torch.randn(2, 16, 6) + 1
    match = samples_of({"single_image": {"CT": ct, "MR": mr}}).match_densities("single_image", None, None)
    expected = density_matching(ct.flatten(0, 1), mr.flatten(0, 1))
    assert match.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_the_floor_compares_crops_of_one_modality():
    torch.manual_seed(0)
    ct = torch.randn(4, 16, 6)
    # Crops with even and odd numbers differ, in both views (crops 0, 1 and again 0, 1).
    ct[[0, 2]] += 4
    mr = torch.randn(4, 16, 6)
    levels = {"paired": Level({"CT": ct, "MR": mr}, GRID)}
    images = {"paired": {"CT": torch.randn(4, 1, 8, 8, 16), "MR": torch.randn(4, 1, 8, 8, 16)}}
    generators = sample_generators(0, 0, 0, range(2))
    samples = LevelSamples.draw(levels, images, tiny(density_samples=1000), generators, range(2), SINGLE_PROCESS)
    match = samples.match_densities("paired", None, None)
    assert match.floor > 0.3 * math.log(2)


def test_variance_and_covariance_are_means_over_stages_and_modalities():
    torch.manual_seed(0)
    tokens = {f"stage_{i}": {"CT": torch.randn(2, 16, 4), "MR": 0.1 * torch.randn(2, 16, 4)} for i in range(2)}
    tokens["paired"] = {"CT": torch.randn(2, 16, 4), "MR": torch.randn(2, 16, 4)}
    losses = samples_of(tokens).vicreg_terms()
    stages = [t.flatten(0, 1) for name in ("stage_0", "stage_1") for t in tokens[name].values()]
    for name, loss in (("variance", variance_loss), ("covariance", covariance_loss)):
        assert losses[name].item() == pytest.approx(sum(loss(t).item() for t in stages) / 4, rel=1e-5)


def test_ranks_are_relative_to_the_channels():
    torch.manual_seed(0)
    line = torch.randn(2, 16, 1) * torch.ones(8)
    ranks = samples_of({"stage_0": {"CT": line, "MR": line}, "stage_1": {"CT": torch.randn(2, 16, 8)}}).ranks()
    assert ranks["rank_stage_0"].item() == pytest.approx(1 / 8, abs=0.01)
    assert ranks["rank_stage_1"] > 0.8


def test_ranks_of_fewer_tokens_than_channels_are_relative_to_what_the_tokens_allow():
    """The base preset's deepest stage: 108 tokens of a validation batch, 768 channels."""
    torch.manual_seed(0)
    images = {"stage_4": {"CT": torch.randn(4, 1, 12, 12, 12)}}
    generators = sample_generators(0, 0, 0, range(4))

    def rank(tokens):
        levels = {"stage_4": Level({"CT": tokens}, (3, 3, 3))}
        samples = LevelSamples.draw(levels, images, tiny(density_samples=512), generators, range(4), SINGLE_PROCESS)
        return samples.ranks()["rank_stage_4"].item()

    varied = torch.randn(4, 27, 768)
    assert 0.9 < rank(varied) <= 1
    assert rank(varied[..., :1] * torch.ones(768)) == pytest.approx(1 / 107, abs=0.005)
    # Tokens that show no tissue are not used.
    images["stage_4"]["CT"][2:] = 0
    assert 0.9 < rank(varied) <= 1


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (("paired",), ["paired"]),
        (("single_image", "stages"), ["single_image", "stage_1", "stage_2"]),
        (("stages",), ["stage_1", "stage_2"]),
    ],
)
def test_which_levels_are_matched(chosen, expected):
    names = ["paired", "single_image", "stage_0", "stage_1", "stage_2"]
    assert matched_levels(names, tiny(density_levels=chosen)) == expected


def test_the_bandwidth_is_the_configured_share_of_the_median_distance():
    torch.manual_seed(0)
    tokens = {"stage_1": {"CT": torch.randn(2, 16, 6), "MR": torch.randn(2, 16, 6) + 1}}
    half, twice = (
        samples_of(tokens, density_bandwidth=share).match_densities("stage_1", None, None) for share in (0.5, 2.0)
    )
    assert twice.median_bandwidth.item() == pytest.approx(4 * half.median_bandwidth.item())
    # A wider kernel sees less of the difference.
    assert 0 < twice.divergence < half.divergence


def test_averages_and_health_are_kept_by_level():
    torch.manual_seed(0)
    tokens = {"CT": torch.randn(2, 16, 6), "MR": torch.randn(2, 16, 6) + 1}
    match = samples_of({"stage_1": tokens}).match_densities("stage_1", None, None)
    first = update_averages({"paired": torch.tensor([1.0, 0.5])}, {"stage_1": match})
    assert first["paired"].tolist() == [1.0, 0.5]
    assert first["stage_1"].tolist() == pytest.approx([match.median_bandwidth.item(), match.floor.item()])
    second = update_averages({"stage_1": torch.zeros(2)}, {"stage_1": match})
    assert second["stage_1"].tolist() == pytest.approx([0.1 * v for v in first["stage_1"].tolist()])
    health = density_health({"stage_1": match})
    assert health["divergence_stage_1"].item() == pytest.approx(match.divergence.item() / math.log(2))
    assert "bandwidth" not in health
