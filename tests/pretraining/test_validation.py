from statistics import fmean

import pytest
import torch

from pretraining.model import PretrainingModel
from pretraining.objective import evaluate
from pretraining.preprocessed.crops import CropDataset
from pretraining.validation import to_device, validate

from .synthetic import CPU, synthetic_batch, synthetic_collection, tiny


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return synthetic_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PretrainingModel(tiny())


@pytest.mark.slow
def test_values_are_means_over_the_validation_batches(collection, model, tmp_path):
    configuration = tiny(validation_batches=3)
    means = validate(model, collection, configuration, CPU, 7, None, tmp_path)
    crops = CropDataset(
        collection,
        "validation",
        configuration.crop_size,
        configuration.batch_size,
        seed=0,
        foreground_share=1.0,
        steps=3,
    )
    with torch.no_grad():
        batches = [evaluate(model, crops[i], configuration, i, None, validation=True).scalars() for i in range(3)]
    for name in ("total", "inpainting", "density", "rank_stage_1"):
        assert means[name] == pytest.approx(fmean(float(values[name]) for values in batches), rel=1e-5)
    assert 0 <= means["probe_accuracy"] <= 1
    assert [file.name for file in tmp_path.iterdir()] == ["step_0000007.png"]


@pytest.mark.slow
def test_it_is_the_same_each_time_and_changes_no_weight(collection, model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (validate(model, collection, tiny(), CPU, step, None, tmp_path) for step in (1, 2))
    assert first == second
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_only_crops_are_moved_to_the_device():
    batch = to_device(synthetic_batch(), torch.device("meta"))
    assert batch["ct"].device.type == batch["mr"].device.type == "meta"
    assert batch["registered"].device == CPU
    assert batch["patients"] == synthetic_batch()["patients"]
