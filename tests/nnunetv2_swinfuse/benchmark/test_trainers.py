import inspect
import json
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_swinfuse.benchmark import trainers
from nnunetv2_swinfuse.benchmark.commands import base_environment
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.training.trainer import nnUNetTrainerSwinFUSEFrozen


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", base_environment("cpu", 1)["nnUNet_extTrainer"])


@pytest.mark.parametrize(
    "name", ["nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainerSwinFUSEFrozen", "nnUNetTrainerSwinUNETR"]
)
def test_nnunet_finds_any_trainer_seeded(name):
    made = recursive_find_trainer_class_by_name(f"{name}Seeded")
    assert made.__name__ == f"{name}Seeded"
    assert issubclass(made, recursive_find_trainer_class_by_name(name))
    # nnU-Net stores the arguments by their names.
    assert list(inspect.signature(made.__init__).parameters) == list(
        inspect.signature(nnUNetTrainer.__init__).parameters
    )


def test_seeding_comes_before_the_trainers_own_start():
    made = recursive_find_trainer_class_by_name("nnUNetTrainerSwinFUSEFrozenSeeded")
    order = [made.__mro__.index(kind) for kind in (trainers.SeededTraining, nnUNetTrainerSwinFUSEFrozen, nnUNetTrainer)]
    assert order == sorted(order)
    assert made.frozen


@pytest.mark.parametrize("mirrored", [0, 1])
def test_training_mirrors_unless_the_experiment_says_otherwise(mirrored):
    class Planned(nnUNetTrainer):
        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):  # noqa: N802
            self.inference_allowed_mirroring_axes = (0, 1, 2)
            return {"x": (-1.0, 1.0)}, False, [40, 40, 40], (0, 1, 2)

    trainer = object.__new__(type("PlannedSeeded", (trainers.SeededTraining, Planned), {}))
    trainer.values = {"mirrored_training": mirrored}
    *others, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert others == [{"x": (-1.0, 1.0)}, False, [40, 40, 40]]
    assert axes == trainer.inference_allowed_mirroring_axes == ((0, 1, 2) if mirrored else None)


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path):
    class Written(nnUNetTrainer):
        content, dies = "first", False

        def save_checkpoint(self, filename):
            Path(filename).write_text(self.content)
            if self.dies:
                raise KeyboardInterrupt

    trainer = object.__new__(type("WrittenSeeded", (trainers.SeededTraining, Written), {}))
    path = tmp_path / "checkpoint_final.pth"
    trainer.save_checkpoint(str(path))
    assert path.read_text() == "first"
    trainer.content, trainer.dies = "half", True
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(path))
    assert path.read_text() == "first"
    assert list(tmp_path.glob("checkpoint_*.pth")) == [path]


def test_the_peak_memory_is_that_of_the_process_that_trained(tmp_path, monkeypatch):
    class Ended(nnUNetTrainer):
        def on_train_end(self):
            pass

    trainer = object.__new__(type("EndedSeeded", (trainers.SeededTraining, Ended), {}))
    trainer.output_folder = str(tmp_path)
    # nnU-Net's --c ends a finished training once more before it validates.
    for peak, expected in ((5, 5), (9, 9), (2, 9)):
        cost = {"peak_memory_bytes": peak, "parameters": peak}
        monkeypatch.setattr(trainers, "training_cost", lambda _, cost=cost: dict(cost))
        trainer.on_train_end()
        written = json.loads((tmp_path / "cost.json").read_text())
        assert written == {"peak_memory_bytes": expected, "parameters": peak}


def test_a_trainer_that_does_not_exist_is_nnunets_error():
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer nnUNetTrainerNone"):
        recursive_find_trainer_class_by_name("nnUNetTrainerNoneSeeded")


def test_a_seed_fixes_the_weights():
    weights = []
    for seed in (1, 1, 2):
        trainers.seed_generators(seed)
        weights.append(torch.nn.Conv3d(1, 2, 3).weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_variables_that_are_not_set_are_named(monkeypatch):
    for variable in trainers.VARIABLES.values():
        monkeypatch.setenv(variable, "1")
    assert trainers._variables()["epochs"] == 1
    monkeypatch.delenv("BENCHMARK_EPOCHS")
    with pytest.raises(BenchmarkError, match="BENCHMARK_EPOCHS"):
        trainers._variables()


def test_passes_are_timed_and_the_hooks_go():
    network = torch.nn.Identity()
    with trainers.timed_passes(network, torch.device("cpu")) as seconds:
        network(torch.zeros(1))
        network(torch.zeros(1))
    network(torch.zeros(1))
    assert len(seconds) == 2
    assert min(seconds) >= 0


def test_nothing_else_lives_in_the_folder_that_nnunet_searches():
    folder = Path(trainers.__file__).parent / "external_trainers"
    assert [path.name for path in folder.glob("*.py")] == ["swinfuse_benchmark_trainers.py"]
