"""The command as a user runs it, on a dataset of a few tiny volumes; then a training with its plans."""

import json
import os
import shutil
import sys

import blosc2
import numpy as np
import pytest
import SimpleITK
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import load_encoder, save_encoder
from nnunetv2_swinfuse.planning.plan_and_preprocess import build_parser, main
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from nnunetv2_swinfuse.training.plans import plan_training
from nnunetv2_swinfuse.training.train import main as train
from tests.threads import use_threads

from ..training.workshop import RESIDUAL, SETTINGS, publish_encoder, write_dataset
from .folders import Folders

pytestmark = pytest.mark.slow

NAME = "Dataset903_Tiny"
QUICK = ["-npfp", "1", "-np", "1", "--no_pbar"]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Planned and preprocessed by the command; no test may change anything in here."""
    root = tmp_path_factory.mktemp("planned")
    folders = Folders(*(root / part for part in ("raw", "preprocessed", "results")))
    for folder in (folders.raw, folders.preprocessed, folders.results):
        folder.mkdir()
    write_dataset(folders.raw / NAME, {"background": 0, "shell": 1, "core": 2})
    publish_encoder(root / "mine.pth")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("raw", "preprocessed", "results"):
            monkeypatch.setenv(f"nnUNet_{name}", str(getattr(folders, name)))
        main(["-d", "903", "-c", "3d_fullres", "-pretrained", str(root / "mine.pth"), *QUICK])
    return folders


@pytest.fixture
def planned(prepared, tmp_path, monkeypatch):
    """A copy of it."""
    folders = Folders(*(tmp_path / part for part in ("raw", "preprocessed", "results")))
    for part in ("raw", "preprocessed", "results"):
        shutil.copytree(getattr(prepared, part), tmp_path / part)
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    for variable in [name for name in os.environ if name.startswith("SWINFUSE_")]:
        monkeypatch.delenv(variable)
    # Later than the raw files, whatever order they were copied in.
    for path in (folders.preprocessed / NAME).rglob("*.pkl"):
        os.utime(path)
    return folders


def written(folders):
    data = folders.preprocessed / NAME / "nnUNetPlans_3d_fullres"
    return {path.name: path.stat().st_mtime_ns for path in data.iterdir()}


def test_it_plans_for_the_named_encoder_and_preprocesses(prepared):
    block = prepared.plans(NAME)["configurations"]["3d_fullres"]
    assert block["architecture"]["arch_kwargs"]["feature_size"] == SETTINGS.feature_size
    assert block["swinfuse"]["encoder"] == str(prepared.raw.parent / "mine.pth")
    assert len(written(prepared)) == 15
    assert (prepared.preprocessed / NAME / "gt_segmentations" / "case_0.nii.gz").is_file()


def test_what_is_preprocessed_is_not_preprocessed_again(planned, tmp_path, capsys):
    before = written(planned)
    publish_encoder(tmp_path / "mine.pth")
    main(["-d", "903", "-pretrained", str(tmp_path / "mine.pth"), "-gpu_memory_target", "0.2", *QUICK])
    output = capsys.readouterr().out
    assert written(planned) == before
    assert "3d_fullres shares the preprocessed data in" in output
    assert "3d_lowres is not planned for this dataset" in output
    assert "| 3d_fullres | 24 x 24 x 24 |" in output


def test_a_changed_label_is_preprocessed_again(planned, tmp_path, monkeypatch):
    use_threads(monkeypatch)
    before = written(planned)
    later = max((planned.preprocessed / NAME).rglob("*.pkl"), key=lambda path: path.stat().st_mtime).stat().st_mtime + 1
    os.utime(planned.raw / NAME / "labelsTr" / "case_3.nii.gz", (later, later))
    publish_encoder(tmp_path / "mine.pth")
    main(["-d", "903", "-c", "3d_fullres", "-pretrained", str(tmp_path / "mine.pth"), *QUICK])
    assert set(written(planned)) == set(before)
    assert all(written(planned)[name] != before[name] for name in before if name.endswith(".pkl"))


@pytest.mark.parametrize(
    "changes", [{"overwrite_image_reader_writer": "SimpleITKIOWithReorient"}, {"channel_names": {"0": "CT"}}]
)
def test_after_a_change_of_the_dataset_training_sees_what_inference_will_see(planned, tmp_path, monkeypatch, changes):
    use_threads(monkeypatch)
    raw = planned.raw / NAME
    # Without axes that RAS order turns round, nothing would differ.
    assert SimpleITK.ReadImage(str(raw / "imagesTr" / "case_0_0000.nii.gz")).GetDirection()[0] == 1
    content = json.loads((raw / "dataset.json").read_text())
    fingerprint = (planned.preprocessed / NAME / "dataset_fingerprint.json").stat().st_mtime_ns
    (raw / "dataset.json").write_text(json.dumps({**content, **changes}))
    publish_encoder(tmp_path / "mine.pth")
    main(["-d", "903", "-c", "3d_fullres", "-pretrained", str(tmp_path / "mine.pth"), *QUICK])
    assert (planned.preprocessed / NAME / "dataset_fingerprint.json").stat().st_mtime_ns > fingerprint
    plans = PlansManager(planned.plans(NAME))
    configuration = plans.get_configuration("3d_fullres")
    stored = blosc2.open(str(planned.preprocessed / NAME / configuration.data_identifier / "case_0.b2nd"))[:]
    image = [str(raw / "imagesTr" / "case_0_0000.nii.gz")]
    dataset = json.loads((raw / "dataset.json").read_text())
    seen, _, _ = configuration.preprocessor_class(verbose=False).run_case(image, None, plans, configuration, dataset)
    np.testing.assert_allclose(stored, seen, atol=1e-3)


def test_the_published_encoder_gives_the_sizes_and_is_not_named(planned):
    publish_encoder(planned.results / "swinfuse" / "encoder.pth")
    main(["-d", "903", "--no_pp", *QUICK])
    block = planned.plans(NAME)["configurations"]["3d_fullres"]
    assert block["architecture"]["arch_kwargs"]["feature_size"] == SETTINGS.feature_size
    assert "encoder" not in block["swinfuse"]


def test_spacing_as_pretrained(planned, tmp_path):
    encoder = publish_encoder(tmp_path / "mine.pth")
    object.__setattr__(encoder, "spacing", (2.0, 1.0, 1.0))
    save_encoder(encoder, tmp_path / "mine.pth")
    main(["-d", "903", "--no_pp", "-pretrained", str(tmp_path / "mine.pth"), "--spacing_as_pretrained", *QUICK])
    block = planned.plans(NAME)["configurations"]["3d_fullres"]
    assert block["spacing"] == [2.0, 1.0, 1.0]
    assert block["data_identifier"] == "nnUNetSwinFUSEPlans_3d_fullres"


@pytest.mark.parametrize(
    ("preset", "plans_name", "target"),
    [("M", "nnUNetSwinFUSEPlans", 8), ("L", "nnUNetSwinFUSELPlans", 24), ("XL", "nnUNetSwinFUSEXLPlans", 40)],
)
def test_presets_have_plans_of_their_own(planned, preset, plans_name, target):
    main(["-d", "903", "--no_pp", "-preset", preset, *QUICK])
    recorded = planned.plans(NAME, plans_name)["configurations"]["3d_fullres"]["swinfuse"]["planned"]
    assert recorded["gpu_memory_target_in_gb"] == target


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-pretrained", "nowhere.pth"], "nowhere.pth: no such encoder file"),
        (["-d", "999"], "Could not find a dataset with the ID 999"),
        (["-pl", "ExperimentPlanner"], "nnUNetv2_plan_and_preprocess"),
        (["-gpu_memory_target", "0"], "expected more than 0 GB"),
        (["-gpu_memory_target", "0.001"], "memory target of 0.001 GB is too small"),
        (["-overwrite_plans_name", "my__Plans"], "no '__'"),
        (["-overwrite_target_spacing", "1", "1"], "expected three numbers"),
        (["-np", "1", "2", "3"], "-np lists 3 numbers"),
        (["--spacing_as_pretrained"], "no pretrained encoder found"),
        (["--normalisation_as_pretrained"], "not recorded how its volumes were normalised"),
        (["-c", "3d_lowres"], "-c 3d_lowres: not planned. Dataset903_Tiny has 2d, 3d_fullres"),
        (["-c", "3d_fullers"], "-c 3d_fullers: not planned"),
    ],
)
def test_bad_input_ends_before_preprocessing(planned, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(planned.results)
    before = written(planned)
    with pytest.raises(SystemExit) as stopped:
        main(["-d", "903", "-npfp", "1", "--no_pbar", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert written(planned) == before


def test_every_flag_of_nnunets_command_is_there(monkeypatch, capsys):
    from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry

    monkeypatch.setattr(sys, "argv", ["nnUNetv2_plan_and_preprocess", "-h"])
    with pytest.raises(SystemExit):
        plan_and_preprocess_entry()
    theirs = {line.split()[0].rstrip(",") for line in capsys.readouterr().out.splitlines() if line.startswith("  -")}
    ours = {option for action in build_parser()._actions for option in action.option_strings}
    assert len(theirs) > 10
    assert theirs <= ours


def test_another_encoder_than_the_planned_one_is_refused_with_the_command_to_plan_again(planned, tmp_path, monkeypatch):
    settings = EncoderSettings(**{**SETTINGS.to_dict(), "feature_size": 24})
    publish_encoder(tmp_path / "other.pth", settings=settings)
    monkeypatch.setenv("SWINFUSE_CHECKPOINT", str(tmp_path / "other.pth"))
    with pytest.raises(EncoderChoiceError) as refused:
        plan_training(planned.plans(NAME), "3d_fullres", tmp_path, pretrained=True)
    message = str(refused.value)
    assert "feature_size is 24 in the encoder, 12 in the network" in message
    command = message.split("To plan for this encoder: swinfuse_plan_and_preprocess ")[1].split(";")[0]
    main([*command.split(), "--no_pp", *QUICK])
    plan_training(planned.plans(NAME), "3d_fullres", tmp_path, pretrained=True)
    # Random weights need no encoder of the planned sizes.
    publish_encoder(tmp_path / "other.pth")
    plan_training(planned.plans(NAME), "3d_fullres", tmp_path, pretrained=False)


@pytest.mark.parametrize("named", [True, False])
def test_a_residual_encoder_is_refused_before_any_work_with_nnunets_command(
    planned, tmp_path, monkeypatch, capsys, named
):
    publish_encoder(tmp_path / "residual.pth", settings=RESIDUAL)
    monkeypatch.setenv("SWINFUSE_CHECKPOINT", str(tmp_path / "residual.pth"))
    (planned.preprocessed / NAME / "dataset_fingerprint.json").unlink()
    with pytest.raises(SystemExit):
        main(["-d", "903", *(["-pretrained", str(tmp_path / "residual.pth")] if named else []), *QUICK])
    error = capsys.readouterr().err
    assert f"{tmp_path / 'residual.pth'} has the backbone resenc" in error
    assert "nnUNetv2_plan_and_preprocess -d 903 -pl nnUNetPlannerResEncM" in error
    assert "-p nnUNetResEncUNetMPlans" in error
    assert not (planned.preprocessed / NAME / "dataset_fingerprint.json").exists()
    # Plans that were made for a Swin encoder do not train a residual one.
    with pytest.raises(EncoderChoiceError, match=r"backbone is resenc .* nnUNetPlannerResEncM, and train with -p"):
        plan_training(planned.plans(NAME), "3d_fullres", tmp_path, pretrained=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [[1, 1, 1], [3, 2, 2], [2, 2, 2]]}, r"strides\[1\] is \[3, 2, 2\]; expected 1 or 2"),
        ({"strides": [[2, 1, 1], [2, 2, 2], [2, 2, 2]]}, r"strides\[0\] is \[2, 1, 1\]; expected \[1, 1, 1\]"),
        ({"kernel_sizes": [[3, 3, 3]]}, r"kernel_sizes lists 1 stages, strides lists"),
        ({"num_heads": [5, 10]}, r"num_heads\[0\] is 5, which does not divide"),
        ({"depths": [1]}, r"depths \[1\] and num_heads"),
        ({"feature_sizes": 12}, r"has \['feature_sizes'\], which this version"),
    ],
)
def test_plans_edited_into_something_impossible_name_the_field(planned, tmp_path, monkeypatch, change, message):
    publish_encoder(tmp_path / "mine.pth")
    monkeypatch.setenv("SWINFUSE_CHECKPOINT", str(tmp_path / "mine.pth"))
    plans = planned.plans(NAME)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(change)
    with pytest.raises(ValueError, match=r"configuration 3d_fullres: no network can be built.*" + message):
        plan_training(plans, "3d_fullres", tmp_path, pretrained=True)


@pytest.fixture
def training(planned, tmp_path, monkeypatch):
    """Set up as for any user of nnU-Net: its three folders, nothing of this package's."""
    publish_encoder(planned.raw.parent / "mine.pth")
    plans = planned.plans(NAME)
    # The copy's encoder is another file than the one that the plans were made with.
    plans["configurations"]["3d_fullres"]["swinfuse"]["encoder"] = str(planned.raw.parent / "mine.pth")
    (planned.preprocessed / NAME / "nnUNetSwinFUSEPlans.json").write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_extTrainer", "")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("SWINFUSE_ITERATIONS_PER_EPOCH", "2")
    monkeypatch.setenv("SWINFUSE_VALIDATION_ITERATIONS_PER_EPOCH", "1")
    monkeypatch.setattr(sys, "argv", ["swinfuse_train"])
    return planned


def test_training_finds_trainer_and_plans_by_itself_and_changes_nothing_in_the_network(training):
    train(["903", "3d_fullres", "0", "-device", "cpu", "-tr", "nnUNetTrainerSwinFUSE_1epoch"])
    model = training.results / NAME / "nnUNetTrainerSwinFUSE_1epoch__nnUNetSwinFUSEPlans__3d_fullres"
    assert (model / "fold_0" / "checkpoint_final.pth").is_file()
    used = json.loads((model / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert used["architecture"] == training.plans(NAME)["configurations"]["3d_fullres"]["architecture"]
    assert used["swinfuse"]["encoder_sha256"] == load_encoder(training.raw.parent / "mine.pth").sha256
    assert used["swinfuse"]["planned"]["gpu_memory_target_in_gb"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["999", "3d_fullres", "0"], "Could not find a dataset with the ID 999"),
        (["903", "3d_lowres", "0"], "no configuration '3d_lowres'; it has 2d, 3d_fullres"),
        (["903", "3d_fullres", "0", "-p", "nnUNetPlans"], "no such plans; the dataset has nnUNetSwinFUSEPlans"),
    ],
)
def test_a_training_that_cannot_begin_says_why(training, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_training_without_its_encoder_says_why(training, capsys):
    (training.raw.parent / "mine.pth").unlink()
    with pytest.raises(SystemExit) as stopped:
        train(["903", "3d_fullres", "0", "-device", "cpu"])
    assert stopped.value.code == 2
    assert "mine.pth: no such encoder file" in capsys.readouterr().err
