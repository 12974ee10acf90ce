import pytest
import torch

from pretraining.randomness import sample_generators
from pretraining.view_pairs import two_views

from .synthetic import synthetic_batch, tiny

PADDING = -9.0


def views_of(configuration, batch=None, registered=True):
    batch = synthetic_batch() if batch is None else batch
    crops = {"CT": batch["ct"], "MR": batch["mr"]}
    count = len(batch["ct"])
    turnable = dict.fromkeys(crops, torch.ones(count, dtype=torch.bool))
    registered = torch.full((count,), registered)
    return two_views(crops, turnable, registered, configuration, sample_generators(0, 0, 0, range(count)))


def test_registered_crops_stay_registered_in_the_paired_view_only():
    batch = synthetic_batch(8)
    views = views_of(tiny(), {**batch, "mr": batch["ct"]})
    ct, mr = views.views["CT"], views.views["MR"]
    assert views.paired_count == 8
    assert torch.equal(ct.mask[:8], mr.mask[:8])
    assert torch.equal(ct.turns[:8], mr.turns[:8])
    # Views of single images must not be matched by turns and cut-outs.
    assert not torch.equal(ct.mask[8:], mr.mask[8:])
    assert not torch.equal(ct.turns[8:], mr.turns[8:])
    # Intensity changes are drawn for each modality, so equal crops differ only by a monotone change.
    order = ct.target[0].flatten().argsort()
    assert (mr.target[0].flatten()[order].diff() > -1e-4).all()


@pytest.mark.parametrize("masking", ["cells", "blocks"])
def test_a_share_of_the_second_views_is_intact(masking):
    batch = synthetic_batch(64)
    drawn = views_of(tiny(masking=masking, intact_second_views=0.0), batch).views
    views = views_of(tiny(masking=masking, intact_second_views=0.25), batch).views
    by_modality = {}
    for name, view in views.items():
        cut_out = view.mask.flatten(1).any(1)
        # First views are drawn first, and are the same with and without.
        assert cut_out[:64].all()
        assert drawn[name].mask.flatten(1).any(1).all()
        assert torch.equal(view.corrupted[:64], drawn[name].corrupted[:64])
        # 64 draws with a probability of 0.25: four standard deviations.
        assert 0.03 < 1 - cut_out[64:].float().mean() < 0.47
        assert torch.equal(view.corrupted[64:][~cut_out[64:]], view.target[64:][~cut_out[64:]])
        by_modality[name] = cut_out[64:]
    assert not torch.equal(by_modality["CT"], by_modality["MR"])
    everything = views_of(tiny(masking=masking, intact_second_views=1.0), batch).views
    assert not any(view.mask[64:].any() for view in everything.values())
    assert not any(view.hidden[64:].any() for view in everything.values())
    # The partner of a view shows what is cut out of it, so something has to be.
    paired = views_of(tiny(masking=masking, intact_second_views=1.0, second_view="paired"), batch).views
    assert all(view.mask.flatten(1).any(1).all() for view in paired.values())


def test_crops_that_are_not_registered_have_turns_of_their_own_and_others_none():
    configuration = tiny()
    views = views_of(configuration, synthetic_batch(16), registered=False)
    assert not torch.equal(views.views["CT"].turns[:16], views.views["MR"].turns[:16])
    batch = synthetic_batch(16)
    turnable = {"CT": torch.zeros(16, dtype=torch.bool), "MR": torch.ones(16, dtype=torch.bool)}
    generators = sample_generators(0, 0, 0, range(16))
    fixed = two_views(
        {"CT": batch["ct"], "MR": batch["mr"]}, turnable, torch.zeros(16, dtype=torch.bool), configuration, generators
    )
    assert fixed.views["CT"].turns.abs().sum() == 0 < fixed.views["MR"].turns.sum()


def test_views_know_which_part_of_a_crop_is_no_padding():
    batch = synthetic_batch(8)
    crops = {"CT": batch["ct"].clone(), "MR": batch["mr"]}
    crops["CT"][:, :, :, 10:] = PADDING
    inside = {"CT": batch["ct_inside"].clone(), "MR": batch["mr_inside"]}
    inside["CT"][:, 1, 1] = 10
    every = torch.ones(8, dtype=torch.bool)
    turnable = dict.fromkeys(crops, every)
    generators = sample_generators(0, 0, 0, range(8))
    views = two_views(crops, turnable, every, tiny(), generators, inside=inside).views
    assert views["MR"].inside.all()
    ct = views["CT"]
    assert ct.inside.shape == ct.target.shape
    assert len(set(ct.turns.tolist())) > 1
    lowest = ct.target.amin((1, 2, 3, 4), keepdim=True)
    assert torch.equal(ct.inside, ct.target > lowest)


def test_the_partner_of_a_registered_crop_shows_what_is_cut_out():
    views = views_of(tiny())
    ct, mr = views.views["CT"], views.views["MR"]
    partner = views.partners["CT"]
    mask = ct.mask[:2]
    assert torch.equal(partner[mask], mr.target[:2][mask])
    assert partner[~mask].abs().max() == 0
    assert torch.equal(views.partners["MR"][mask], ct.target[:2][mask])


def test_other_partners_are_the_other_modality_as_it_is():
    views = views_of(tiny(), registered=False)
    assert torch.equal(views.partners["CT"], views.views["MR"].corrupted[:2])
    assert views_of(tiny(complementary_masks=False)).partners is None


def test_a_pseudo_pair_is_the_crop_itself_in_another_contrast():
    batch = synthetic_batch()
    # Two tissues in air; whatever the contrast, a voxel far from borders depends on its tissue and place only.
    image = torch.full((2, 1, 16, 16, 16), -1.0)
    image[..., 2:14, 2:14, 2:14] = 0.5
    image[..., 5:11, 5:11, 5:11] = 2.0
    views = views_of(tiny(partner="pseudo_pair"), {**batch, "ct": image}, registered=False)
    ct, partner = views.views["CT"], views.partners["CT"]
    mask = ct.mask[:2]
    assert partner[~mask].abs().max() == 0
    shown = partner[mask]
    assert not torch.allclose(shown, ct.target[:2][mask], atol=0.1)
    air = mask & (ct.target[:2] == ct.target[:2].amin((1, 2, 3, 4), keepdim=True))
    assert air.any()
    other = views_of(tiny(partner="pseudo_pair"), {**batch, "ct": image, "mr": batch["mr"] + 9}, registered=False)
    assert torch.equal(other.partners["CT"], partner)


@pytest.mark.parametrize(
    ("changes", "paired_count"),
    [({}, 2), ({"second_view": "paired"}, 4), ({"dim": "none"}, 0)],
)
def test_how_many_views_are_paired(changes, paired_count):
    assert views_of(tiny(**changes)).paired_count == paired_count


def test_a_single_modality_has_no_partners():
    configuration = tiny(modalities=("CT",))
    crops = {"CT": synthetic_batch()["ct"]}
    every = torch.ones(2, dtype=torch.bool)
    views = two_views(crops, {"CT": every}, ~every, configuration, sample_generators(0, 0, 0, range(2)))
    assert (views.paired_count, views.partners) == (0, None)
    assert len(views.views["CT"].target) == 4


def test_random_contrasts_are_what_is_reconstructed():
    plain, rendered = (views_of(tiny(random_contrast=share)) for share in (0.0, 1.0))
    ct = rendered.views["CT"]
    assert torch.equal(ct.corrupted[~ct.mask], ct.target[~ct.mask])
    assert not torch.allclose(ct.target, plain.views["CT"].target, atol=0.1)


@pytest.mark.parametrize("changes", [{}, {"partner": "pseudo_pair", "random_contrast": 0.5}])
def test_a_sample_does_not_depend_on_those_that_other_processes_have(changes):
    configuration = tiny(**changes)
    batch = synthetic_batch(4)
    whole = views_of(configuration, batch)
    part = {name: values[2:] for name, values in batch.items()}
    crops = {"CT": part["ct"], "MR": part["mr"]}
    every = torch.ones(2, dtype=torch.bool)
    own = two_views(crops, dict.fromkeys(crops, every), every, configuration, sample_generators(0, 0, 0, range(2, 4)))
    assert torch.equal(own.views["MR"].corrupted, whole.views["MR"].corrupted[[2, 3, 6, 7]])
    torch.testing.assert_close(own.partners["MR"], whole.partners["MR"][2:])
