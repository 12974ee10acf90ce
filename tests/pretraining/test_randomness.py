import torch

from pretraining.randomness import derived_seed, sample_generators, step_generator


def test_each_seed_step_and_purpose_has_its_own_stream():
    seeds = {derived_seed(seed, step, purpose) for seed in range(3) for step in range(50) for purpose in range(4)}
    assert len(seeds) == 3 * 50 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_depends_on_nothing_else():
    torch.rand(7)
    first = torch.rand(4, generator=step_generator(1, 2, 3))
    torch.rand(5)
    assert torch.equal(first, torch.rand(4, generator=step_generator(1, 2, 3)))


def test_a_samples_stream_depends_on_its_number_not_on_its_batch():
    whole = [torch.rand(2, generator=generator) for generator in sample_generators(1, 2, 3, range(4))]
    part = [torch.rand(2, generator=generator) for generator in sample_generators(1, 2, 3, range(2, 4))]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole[2:], part, strict=True))
    assert len({float(values[0]) for values in whole}) == 4
