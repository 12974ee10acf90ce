import pytest
import torch

from pretraining.token_samples import MIN_FOREGROUND, foreground_tokens, sample_tokens


def generators(count):
    return [torch.Generator().manual_seed(index) for index in range(count)]


def numbered(crops=2, tokens=40):
    """Tokens whose only channel is their crop and place: 100 * crop + place."""
    return (100 * torch.arange(crops)[:, None] + torch.arange(tokens)).float()[..., None]


def test_tissue_comes_first_and_each_crop_gives_as_many():
    tokens = numbered()
    foreground = torch.zeros(2, 40, dtype=torch.bool)
    foreground[0, :30] = True
    foreground[1, 33:] = True
    samples = sample_tokens(tokens, foreground, 10, generators(2), torch.tensor([True, False]))
    values = samples.tokens[:, 0]
    assert len(values) == 20 == len(set(values.tolist()))
    assert (values[:10] < 30).all()
    assert set(range(133, 140)) < set(values[10:].long().tolist())
    # The rest of the second crop fills up without counting.
    assert samples.mask.tolist() == [True] * 10 + [133 <= v < 140 for v in values[10:].tolist()]
    assert samples.group.tolist() == [True] * 10 + [False] * 10


def test_without_tissue_all_tokens_count():
    foreground = torch.zeros(2, 40, dtype=torch.bool)
    foreground[0, : MIN_FOREGROUND - 1] = True
    assert sample_tokens(numbered(), foreground, 40, generators(2), torch.zeros(2, dtype=torch.bool)).mask.all()
    foreground[0, :MIN_FOREGROUND] = True
    samples = sample_tokens(numbered(), foreground, 40, generators(2), torch.zeros(2, dtype=torch.bool))
    assert samples.mask.sum() == MIN_FOREGROUND


def test_a_crop_is_sampled_alike_in_any_batch():
    tokens, foreground = numbered(3), torch.ones(3, 40, dtype=torch.bool)
    group = torch.tensor([True, False, True])
    together = sample_tokens(tokens, foreground, 5, generators(3), group)
    single = sample_tokens(tokens[2:], foreground[2:], 5, generators(3)[2:], group[2:])
    assert torch.equal(together.tokens[10:], single.tokens)


def test_gradients_reach_the_tokens_that_were_drawn():
    tokens = numbered().requires_grad_()
    foreground = torch.ones(2, 40, dtype=torch.bool)
    sample_tokens(tokens, foreground, 5, generators(2), torch.zeros(2, dtype=torch.bool)).tokens.sum().backward()
    assert tokens.grad.sum() == 10


def test_flat_background_is_no_foreground():
    image = torch.full((1, 1, 16, 16, 16), -1.0)
    image[:, :, :8] = torch.randn(8, 16, 16)
    tokens = foreground_tokens(image, (4, 4, 4)).reshape(4, 4, 4)
    assert tokens[:2].all()
    assert not tokens[2:].any()


def test_a_token_of_one_voxel_shows_tissue_if_its_neighbours_differ():
    image = torch.full((2, 1, 12, 12, 12), -1.3)
    image[:, :, :6] = torch.randn(6, 12, 12)
    tokens = foreground_tokens(image, (12, 12, 12)).reshape(2, 12, 12, 12)
    # A voxel of air beside the tissue has neighbours in it.
    assert tokens[:, :7].all()
    assert not tokens[:, 7:].any()


@pytest.mark.parametrize("level", [-5.0, 0.0, 7.0])
@pytest.mark.parametrize("cells", [2, 8])
def test_an_image_of_one_intensity_has_no_foreground(level, cells):
    assert not foreground_tokens(torch.full((1, 1, 8, 8, 8), level), (cells,) * 3).any()
