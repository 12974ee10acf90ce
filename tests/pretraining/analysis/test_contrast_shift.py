import pytest
import torch

from nnunetv2_swinfuse.random_contrast import apply_contrast, draw_contrast
from pretraining.analysis.contrast_shift import (
    STRENGTHS,
    Similarity,
    blend_contrast,
    mean_similarity,
    measure_shift,
    similarity,
    voxel_correlation,
)
from pretraining.analysis.tokens import sample_layers

from . import synthetic_analysis as synthetic


def contrast(seed=0):
    return draw_contrast([torch.Generator().manual_seed(seed)])


def test_without_strength_nothing_changes_and_with_all_of_it_the_contrast_is_the_random_one():
    image = synthetic.smooth(0)
    assert blend_contrast(image, contrast(), 0.0) is image
    whole = blend_contrast(image, contrast(), 1.0)
    assert torch.allclose(whole, apply_contrast(image, contrast()), atol=1e-4)


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_mean_and_deviation_stay(strength):
    image = 3 * synthetic.smooth(0) + 2
    blended = blend_contrast(image, contrast(), strength)
    assert float(blended.mean()) == pytest.approx(float(image.mean()), abs=1e-4)
    assert float(blended.std()) == pytest.approx(float(image.std()), rel=1e-4)


def test_stronger_contrasts_are_less_alike():
    crops = synthetic.crop_sets(6).first.crops
    correlations = voxel_correlation(crops, STRENGTHS, 2, 0)
    assert correlations[0] == pytest.approx(1)
    assert correlations == sorted(correlations, reverse=True)


def test_the_identity_is_similar_and_independent_tokens_are_not():
    tokens, others = synthetic.layer_tokens(0).tokens, synthetic.layer_tokens(1).tokens
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    assert similarity(tokens, tokens, mask) == (pytest.approx(1), pytest.approx(1))
    assert similarity(tokens, -tokens, mask)[1] < -0.9
    cka, cosine = similarity(tokens, others, mask)
    assert abs(cka) < 0.1
    assert abs(cosine) < 0.1


def test_a_common_offset_of_all_tokens_does_not_look_like_similarity():
    tokens, others = (synthetic.layer_tokens(seed, shift=50.0).tokens for seed in (0, 1))
    assert abs(similarity(tokens, others, torch.ones(tokens.shape[:2], dtype=torch.bool)).cosine) < 0.1


def test_features_of_the_voxels_change_with_the_contrast_and_constant_ones_do_not():
    crops = synthetic.crop_sets(4)

    def maps(image):
        place = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
        return {"voxels": torch.nn.functional.avg_pool3d(image, 4), "positions": place}

    samples = sample_layers(maps, crops, 160, 0)
    shift = measure_shift(maps, crops, samples, 0, STRENGTHS, 1, 160, 0)
    assert [value.cosine for value in shift.by_strength["positions"]] == [pytest.approx(1)] * len(STRENGTHS)
    voxels = [value.cka for value in shift.by_strength["voxels"]]
    assert voxels[0] == pytest.approx(1)
    assert voxels[-1] < voxels[0]
    assert shift.other_patient["positions"].cka == pytest.approx(1)
    # MR is the negative of CT: CKA does not see the sign, cosine similarity does.
    assert shift.other_domain["voxels"].cka == pytest.approx(1)
    assert shift.other_domain["voxels"].cosine < 0


def test_means_are_of_each_measure():
    assert mean_similarity([Similarity(0.5, 1.0), Similarity(0.7, 0.0)]) == (pytest.approx(0.6), 0.5)
    assert mean_similarity([Similarity(None, 1.0), Similarity(0.7, 0.0)]).cka is None
