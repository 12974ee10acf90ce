import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pretraining.voxel_probe.cases import Case
from pretraining.voxel_probe.features import at_voxels
from pretraining.voxel_probe.linear import draw_sample, fit, sample_features

from . import synthetic_labelled as synthetic


def clouds(count=600, channels=5):
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(3, (count,), generator=generator)
    features = torch.randn(count, channels, generator=generator)
    features[:, 0] += classes
    return features, classes, torch.rand(count, generator=generator) + 0.5


def test_the_fit_is_that_of_scikit_learn():
    features, classes, weights = clouds()
    layer = fit(features, classes, weights, 3, penalty=1e-2)
    mean = (weights @ features) / weights.sum()
    deviation = ((weights @ (features - mean).square()) / weights.sum()).sqrt()
    # Its penalty is 1/2 ||w||^2 against C times the sum of the weighted likelihoods.
    peer = LogisticRegression(C=1 / (2 * 1e-2 * float(weights.sum())), max_iter=2000, tol=1e-8)
    peer.fit(((features - mean) / deviation).numpy(), classes.numpy(), weights.numpy())
    expected = torch.from_numpy(peer.predict_proba(((features - mean) / deviation).numpy())).float()
    assert torch.allclose((features @ layer.weight + layer.bias).softmax(1), expected, atol=2e-3)


def test_a_constant_channel_and_a_missing_class_do_no_harm():
    features, classes, weights = clouds()
    features[:, 3] = 7.0
    layer = fit(features, classes, weights, 5)
    assert layer.weight.isfinite().all()
    assert not layer.weight[3].any()
    assert set((features @ layer.weight + layer.bias).argmax(1).tolist()) <= {0, 1, 2}


def test_applying_the_layer_before_interpolation_equals_applying_it_after():
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(3, 8, 8, 8, generator=generator), torch.randn(2, 4, 4, 4, generator=generator)]
    features, classes, weights = clouds()
    layer = fit(features, classes, weights, 3)
    expected = at_voxels(maps, (8, 8, 8), torch.arange(8**3)) @ layer.weight + layer.bias
    assert torch.allclose(layer.logits(maps, (8, 8, 8)).flatten(1).T, expected, atol=1e-4)


@pytest.mark.parametrize("cases", [1, 500, 100_000])
def test_the_weights_of_a_sample_undo_its_division(cases):
    case = synthetic.case(size=48)
    sample = draw_sample(case, case.labels, cases, 0)
    for value in range(3):
        total = float(sample.weights[sample.classes == value].sum())
        assert total == pytest.approx(int((case.labels == value).sum()))


def test_only_used_voxels_are_sampled():
    case = synthetic.case()
    used = torch.zeros_like(case.used)
    used[:4] = True
    sample = draw_sample(Case("a", case.image, case.labels, used, used), case.labels, 1, 0)
    assert used.flatten()[sample.voxels].all()
    assert sample_features([case.labels[None].float()], case, sample)[:, 0].tolist() == sample.classes.tolist()
