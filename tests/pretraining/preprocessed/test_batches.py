import math

import numpy as np
import pytest

from pretraining.preprocessed.batches import BatchDraw, repetition_notes
from pretraining.preprocessed.collection import Split

from .test_crops import make_collection


def split_of(pairs=0, ct=0, mr=0, each=1) -> tuple[Split, np.ndarray]:
    """A split with registered pairs and patients of one domain, with `each` volumes each; and the patients."""
    rows, ct_volumes, mr_volumes, patients = [], [], [], []
    for patient in range(pairs + ct + mr):
        if patient < pairs:
            rows.append([len(patients), len(patients) + 1])
            ct_volumes.append(len(patients))
            mr_volumes.append(len(patients) + 1)
            patients += [patient] * 2
        else:
            side = ct_volumes if patient < pairs + ct else mr_volumes
            side += range(len(patients), len(patients) + each)
            patients += [patient] * each
    pair_rows = np.array(rows, int).reshape(-1, 2)
    of_ct, of_mr = np.array(ct_volumes, int), np.array(mr_volumes, int)
    return Split(pair_rows, of_ct, of_mr, of_ct[pairs:], of_mr[pairs:]), np.array(patients)


def batches(split, patients, size, count=400):
    for seed in range(count):
        draw = BatchDraw(split, patients, np.random.default_rng(seed))
        yield [draw.sample() for _ in range(size)]


def repeated(samples, patients) -> bool:
    used = [p for ct, mr, paired in samples for p in ({patients[ct]} if paired else (patients[ct], patients[mr]))]
    return len(set(used)) < len(used)


def test_independent_draws_would_repeat_patients_as_often_as_computed():
    """The closed form of what a batch of 4 from 24 patients was before: 23 % of the batches."""
    expected = 1 - math.perm(24, 4) / 24**4
    draws = np.random.default_rng(0).integers(24, size=(20_000, 4))
    measured = np.mean([len(set(batch)) < 4 for batch in draws.tolist()])
    assert expected == pytest.approx(0.232, abs=0.001)
    assert measured == pytest.approx(expected, abs=0.01)
    split, patients = split_of(ct=99, mr=24)
    assert not any(repeated(samples, patients) for samples in batches(split, patients, 4))


@pytest.mark.parametrize(
    "numbers", [{"pairs": 8}, {"pairs": 6, "ct": 5, "mr": 5}, {"ct": 4, "mr": 4}, {"ct": 4, "mr": 5, "each": 3}]
)
def test_no_patient_is_in_a_batch_twice(numbers):
    split, patients = split_of(**numbers)
    assert not any(repeated(samples, patients) for samples in batches(split, patients, 4))


@pytest.mark.parametrize("numbers", [{"ct": 3, "mr": 2}, {"pairs": 2}])
def test_with_fewer_patients_their_numbers_of_uses_differ_by_at_most_one(numbers):
    split, patients = split_of(**numbers)
    for samples in batches(split, patients, 7, count=50):
        for side, volumes in ((0, split.ct), (1, split.mr)):
            uses = np.bincount([patients[sample[side]] for sample in samples], minlength=len(patients))
            domain_uses = uses[np.unique(patients[volumes])]
            assert domain_uses.max() - domain_uses.min() <= 1


def test_all_volumes_are_drawn_equally_often():
    split, patients = split_of(ct=5, mr=6)
    counts = np.bincount([volume for s in batches(split, patients, 3, 2000) for ct, mr, _ in s for volume in (ct, mr)])
    assert counts[split.ct] == pytest.approx(2000 * 3 / 5, rel=0.1)
    assert counts[split.mr] == pytest.approx(2000 * 3 / 6, rel=0.1)


def test_each_pair_is_drawn_as_often_as_a_volume_of_the_larger_unpaired_domain():
    """Numbers of the abdominal collection, in which limbs in registered pairs were 93 % of the CT crops before."""
    split, patients = split_of(pairs=34, ct=13, mr=5)
    counts = np.bincount([volume for s in batches(split, patients, 4, 3000) for ct, mr, _ in s for volume in (ct, mr)])
    pairs, ct, mr = (counts[v].mean() for v in (split.pairs[:, 0], split.unpaired_ct, split.unpaired_mr))
    assert counts[split.pairs[:, 1]].mean() == pairs
    # 12,000 samples, 34 / 47 of which are pairs; the rest is divided among 13 CT, and among 5 MR.
    assert pairs == pytest.approx(12_000 / 47, rel=0.03)
    assert ct == pytest.approx(12_000 / 47, rel=0.08)
    assert mr == pytest.approx(12_000 * 13 / 47 / 5, rel=0.08)


def test_the_log_says_when_patients_must_repeat(tmp_path):
    collection = make_collection(tmp_path, pairs=("p0", "p1"), ct=("c0",))
    assert repetition_notes(collection, "train", 2, ("CT", "MR")) == []
    (note,) = repetition_notes(collection, "train", 3, ("CT", "MR"))
    assert note.startswith("train: 2 patients with MR, fewer than the 3 samples of a batch")
