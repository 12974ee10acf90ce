import pytest
import torch

from pretraining.model import PretrainingModel
from pretraining.monitoring.probes import (
    FeatureProbes,
    minibatch_cka,
    modality_accuracy,
    patient_folds,
    unbiased_hsic,
)

from ..synthetic import synthetic_batch, tiny

NORMAL = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=NORMAL, dtype=torch.float64)


def names(count, patients):
    return [f"p{index % patients}" for index in range(count)]


def test_modalities_that_differ_are_told_apart_and_equal_ones_are_not():
    ct, mr = normal(60, 20), normal(60, 20)
    equal = modality_accuracy(ct, mr, names(60, 6), names(60, 6))
    assert 0.3 < equal < 0.7
    shifted = mr + 3 * torch.eye(20, dtype=torch.float64)[4]
    assert modality_accuracy(ct, shifted, names(60, 6), names(60, 6)) > 0.85
    # A channel's size does not matter.
    assert modality_accuracy(1e-3 * ct, 1e-3 * shifted, names(60, 6), names(60, 6)) > 0.85


def test_more_channels_than_crops_do_not_make_chance_look_like_knowledge():
    ct, mr = normal(16, 400), normal(16, 400)
    assert 0.2 < modality_accuracy(ct, mr, names(16, 8), names(16, 8)) < 0.8


def test_patients_are_not_recognised_in_place_of_modalities():
    # Each patient has its own features, repeated in every crop: only the patient tells CT from MR.
    ct, mr = (normal(4, 50).repeat_interleave(8, 0) for _ in range(2))
    of = [f"c{index // 8}" for index in range(32)], [f"m{index // 8}" for index in range(32)]
    assert modality_accuracy(ct, mr, *of) < 0.8
    one_patient = ["a"] * 32, ["b"] * 32
    assert modality_accuracy(ct, mr, *one_patient) == 1.0


@pytest.mark.parametrize(
    ("ct", "mr"),
    [
        # Partly the same patients: numbered for each modality, c and e would be in two folds each.
        (["a", "b", "c", "e"], ["c", "d", "e", "f", "g"]),
        (["b", "d"], ["a", "b", "c", "d", "e"]),
        (["a", "b", "c"], ["d", "e", "f"]),
    ],
)
def test_a_patient_is_in_one_fold_and_every_fold_has_both_modalities(ct, mr):
    folds = min(len(ct), len(mr))
    ct_folds, mr_folds = patient_folds(ct * 2, mr * 2, folds)
    of_patient = {}
    for patient, fold in zip([*ct * 2, *mr * 2], [*ct_folds, *mr_folds], strict=True):
        assert of_patient.setdefault(patient, fold) == fold
    assert set(ct_folds) == set(mr_folds) == set(range(folds))


def test_features_that_are_all_alike_tell_nothing():
    ct = torch.ones(8, 5, dtype=torch.float64) * 0.1
    assert modality_accuracy(ct, ct.clone(), names(8, 4), names(8, 4)) == 0.5
    with pytest.raises(ValueError, match="two crops of each modality, found 1"):
        modality_accuracy(ct[:1], ct, ["a"], names(8, 4))


def test_cka_ignores_rotation_scale_and_shift_and_is_unbiased():
    features = normal(64, 10)
    rotation = torch.linalg.qr(normal(10, 10)).Q
    assert minibatch_cka(features, 3 * features @ rotation + 1) == pytest.approx(1.0)
    # The plain estimate would be near 1 for more channels than samples.
    unrelated = [minibatch_cka(normal(16, 500), normal(16, 500)) for _ in range(20)]
    assert abs(sum(unrelated) / 20) < 0.05
    half = features + normal(64, 10)
    assert 0.3 < minibatch_cka(features, half) < 0.8


def test_cka_of_minibatches_is_about_that_of_all():
    features = normal(256, 6)
    noisy = features + normal(256, 6)
    assert minibatch_cka(features, noisy, batch=16) == pytest.approx(
        minibatch_cka(features, noisy, batch=256), abs=0.06
    )
    # A remainder of one sample, too few for a batch of its own, is not lost.
    assert minibatch_cka(features[:17], features[:17], batch=16) == pytest.approx(1.0)


def test_unbiased_hsic_is_the_u_statistic_over_four_distinct_samples():
    # Song et al. (2012), equation 4, by enumeration.
    from itertools import permutations

    one, other = normal(6, 3), normal(6, 2)
    k, l = one @ one.T, other @ other.T  # noqa: E741
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in permutations(range(6), 4)]
    assert unbiased_hsic(k, l).item() == pytest.approx(torch.stack(terms).mean().item())


def test_cka_of_constant_features_is_zero_and_few_samples_are_an_error():
    assert minibatch_cka(torch.ones(8, 3), normal(8, 3)) == 0.0
    with pytest.raises(ValueError, match="found 3 and 3"):
        minibatch_cka(normal(3, 2), normal(3, 2))


def test_probes_read_batches_and_leave_out_what_cannot_be_measured():
    model = PretrainingModel(tiny()).eval()
    probes = FeatureProbes()
    assert probes.results() == {}
    probes.add(model, {**synthetic_batch(4), "registered": torch.zeros(4, dtype=torch.bool)})
    assert set(probes.results()) == {"probe_accuracy"}
    same = synthetic_batch(4)
    probes.add(model, {**same, "mr": same["ct"]})
    results = probes.results()
    assert results["cka"] == pytest.approx(1.0, abs=1e-4)
    assert 0 <= results["probe_accuracy"] <= 1
    assert len(probes._ct) == 2
    probes.add(model, {"mr": same["mr"]})
    assert len(probes._ct) == 2
