import dataclasses

import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.model import PretrainingModel
from pretraining.monitoring.organs import BEST_RANDOM, COORDINATES, DICE, HANDMADE, RANDOM, organ_tasks
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.voxel_probe import organ_probe
from pretraining.voxel_probe.encoders import FrozenEncoder
from pretraining.voxel_probe.features import encoder_features, with_coordinates
from pretraining.voxel_probe.organ_probe import FLOORS, OrganDatasets, OrganProbe, organ_scores

from ..synthetic import tiny
from . import synthetic_labelled as synthetic

pytestmark = pytest.mark.slow

SPACING = (1.0, 1.0, 1.0)
NORMALISATION = Normalisation(SPACING, {}, False)
CONFIGURATION = tiny(drop_path_rate=0.0)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("nnunet")
    synthetic.write_dataset(root / "raw", cases=8)
    return OrganDatasets(("501",), root / "raw", root / "preprocessed")


@pytest.fixture(scope="module")
def probe(datasets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return OrganProbe.prepare(datasets, NORMALISATION, CONFIGURATION, folder), folder


def cases_of(plan):
    members = {case for split in plan.splits.values() for case in (*split.labelled, *split.test)}
    name = plan.tasks[0].fitted.name
    return {(name, case.name): synthetic.case(case.name, int(case.name[1:])) for case in members}


def test_features_that_show_the_organs_reach_a_dice_of_1_and_noise_does_not():
    plan = synthetic.plan(synthetic.dataset(cases=8), labelled=(2, 4))
    cases = cases_of(plan)

    def one_hot(image):
        rounded = torch.nn.functional.avg_pool3d(image, 2)[0].round()
        return [torch.cat([(rounded == value).float() for value in range(3)])]

    def noise(image):
        generator = torch.Generator().manual_seed(int(image.abs().sum() * 1000) % 2**31)
        return [torch.randn(4, *(size // 2 for size in image.shape[2:]), generator=generator)]

    assert organ_scores(one_hot, plan, cases) == {"501_2": pytest.approx(1.0), "501_4": pytest.approx(1.0)}
    assert max(organ_scores(noise, plan, cases).values()) < 0.2


def test_a_run_is_fitted_on_2_and_4_cases_and_measured_on_others(datasets):
    plan = datasets.plan()
    (split,) = plan.splits.values()
    assert plan.labelled == {"Dataset501_Tiny": (2, 4)}
    assert len(split.test) == 4
    assert not {case.name for case in split.labelled} & {case.name for case in split.test}


def test_a_model_with_the_weights_of_a_random_encoder_scores_as_that_encoder(probe, datasets):
    organs, _ = probe
    torch.manual_seed(0)
    model = PretrainingModel(dataclasses.replace(CONFIGURATION, spacing=SPACING)).eval()
    network = FrozenEncoder(CONFIGURATION.encoder_settings, CONFIGURATION.topology.strides, SPACING, 0)
    features = with_coordinates(encoder_features(network.patch_embed, network.encoder))
    plan = datasets.plan()

    means = organs.measure(model)

    expected = organ_scores(features, plan, organs._cases)
    assert {task: means[f"{DICE}_{task}"] for task in organ_tasks(means)} == pytest.approx(expected)
    for task in ("501_2", "501_4"):
        assert means[f"{BEST_RANDOM}_{task}"] >= max(means[f"{RANDOM}_{task}"], expected[task])
        # Organs of the same place in every case: coordinates nearly suffice.
        assert means[f"{COORDINATES}_{task}"] > 0.5
        assert 0 < means[f"{HANDMADE}_{task}"] <= 1


def test_floors_are_measured_once_for_a_run_and_again_for_another_network(probe, datasets, monkeypatch):
    _, folder = probe
    written = (folder / FLOORS).read_bytes()
    measured = []
    monkeypatch.setattr(organ_probe, "_floors", lambda *_: measured.append(1) or {RANDOM: {"501_2": 0.5}})
    OrganProbe.prepare(datasets, NORMALISATION, CONFIGURATION, folder)
    assert (measured, (folder / FLOORS).read_bytes()) == ([], written)
    OrganProbe.prepare(datasets, NORMALISATION, dataclasses.replace(CONFIGURATION, feature_size=16), folder)
    assert measured == [1]


def test_a_dataset_with_too_few_cases_is_refused(tmp_path):
    synthetic.write_dataset(tmp_path, cases=3)
    with pytest.raises(InputError, match=r"Dataset501_Tiny: 3 labelled case.*at least 4: 2 to fit on"):
        OrganDatasets(("501",), tmp_path, tmp_path).plan()
