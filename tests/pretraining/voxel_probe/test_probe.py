import dataclasses

import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.voxel_probe.features import coordinate_features
from pretraining.voxel_probe.probe import run_arm
from pretraining.voxel_probe.results import Results, case_means

from . import synthetic_labelled as synthetic

FITTED, TESTED = "Dataset501_Tiny", "Dataset502_Tiny"


def intensity(image):
    return [torch.nn.functional.avg_pool3d(image, 2)[0]]


def one_hot(image):
    """Contains the label: the intensity is the class."""
    rounded = intensity(image)[0].abs().round()
    return [torch.cat([(rounded == value).float() for value in range(3)])]


def noise(image):
    generator = torch.Generator().manual_seed(int(image.abs().sum() * 1000) % 2**31)
    return [torch.randn(4, *(size // 2 for size in image.shape[2:]), generator=generator)]


def mean(results, metric="dice"):
    values = [value for seeds in case_means(results.rows, metric).values() for value in seeds.values()]
    return sum(values) / len(values)


def probe(tmp_path, features, plan=None, **kwargs):
    results = Results(tmp_path / "probe.csv")
    run_arm(synthetic.arm(features, **kwargs), plan or synthetic.plan(synthetic.dataset()), results, True, quiet=True)
    return results


def test_features_that_contain_the_label_give_dice_1(tmp_path):
    results = probe(tmp_path, one_hot)
    assert mean(results) == pytest.approx(1.0)
    assert mean(results, "auc") == pytest.approx(1.0)


def test_noise_is_at_chance(tmp_path):
    results = probe(tmp_path, noise)
    assert mean(results) < 0.1
    assert mean(results, "auc") == pytest.approx(0.5, abs=0.1)


def test_coordinates_learn_a_half_space(tmp_path):
    arm = synthetic.arm(coordinate_features)

    def load(_, member):
        case = synthetic.case(member.name)
        half = torch.zeros_like(case.labels)
        half[:, :, :4] = 1
        return dataclasses.replace(case, labels=half)

    results = Results(tmp_path / "probe.csv")
    data = synthetic.dataset(names=("left",))
    run_arm(dataclasses.replace(arm, loader=load), synthetic.plan(data), results, quiet=True)
    assert mean(results) == pytest.approx(1.0)


def test_the_order_of_the_labelled_cases_does_not_matter(tmp_path):
    plan = synthetic.plan(synthetic.dataset())
    split = plan.splits[FITTED]
    turned = dataclasses.replace(split, labelled=split.labelled[::-1])
    other = dataclasses.replace(plan, splits={FITTED: turned})
    values = [mean(probe(tmp_path / str(n), intensity, p), "nll") for n, p in enumerate((plan, other))]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_zero_shot_fails_for_inverted_intensities_and_works_for_absolute_ones(tmp_path):
    plan = synthetic.plan(synthetic.dataset(FITTED), synthetic.dataset(TESTED))
    inverted = {TESTED: -1.0}
    raw = probe(tmp_path / "raw", intensity, plan, sign=inverted)
    absolute = probe(tmp_path / "absolute", lambda image: [m.abs() for m in intensity(image)], plan, sign=inverted)
    assert {row.key.tested_on for row in raw.rows} == {"502"}
    assert mean(raw) < 0.05
    # A linear layer orders three classes on one axis: the highest is separated, the middle one by its bias.
    assert mean(absolute) > 0.9
    same = probe(tmp_path / "same", intensity, plan)
    assert mean(same) > 0.9


def test_zero_shot_uses_the_labels_in_common_whatever_their_values(tmp_path):
    plan = synthetic.plan(synthetic.dataset(FITTED), synthetic.dataset(TESTED, names=("aorta", "Spleen")))
    results = probe(tmp_path, one_hot, plan)
    assert {row.label for row in results.rows} == {"spleen", "all"}
    assert mean(results) == pytest.approx(1.0)


def test_features_of_a_case_are_computed_once_for_all_layers(tmp_path):
    first, second = synthetic.dataset(FITTED), synthetic.dataset(TESTED, names=("aorta", "Spleen"))
    own, both = synthetic.plan(first, labelled=(1, 2)), synthetic.plan(first, second, labelled=(1, 2))
    together = dataclasses.replace(both, tasks=(*own.tasks, *both.tasks))
    images = []

    def counted(image):
        images.append(image)
        return one_hot(image)

    probe(tmp_path / "together", counted, together)
    split = together.splits
    assert len(images) == 2 + len(split[FITTED].test) + len(split[TESTED].test)
    for plan in (own, both):
        probe(tmp_path / "separate", one_hot, plan)
    rows = [Results(tmp_path / name / "probe.csv").rows for name in ("together", "separate")]
    assert sorted(map(str, rows[0])) == sorted(map(str, rows[1]))


def test_existing_rows_are_kept_and_rows_of_other_inputs_refused(tmp_path):
    plan = synthetic.plan(synthetic.dataset(), labelled=(1, 3))
    probe(tmp_path, one_hot, plan)
    results = Results(tmp_path / "probe.csv")
    assert {row.key.labelled for row in results.rows} == {1, 3}
    run_arm(synthetic.arm(None), plan, results, quiet=True)  # nothing is computed
    with pytest.raises(InputError, match="another encoder, split or setting"):
        run_arm(synthetic.arm(None, description="other weights"), plan, results, quiet=True)
