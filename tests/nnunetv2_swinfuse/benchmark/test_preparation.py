import gzip
import json
from pathlib import Path

import pytest

from nnunetv2_swinfuse.benchmark import preparation
from nnunetv2_swinfuse.benchmark.arms import DEFAULT_PLANNER, PLANS, SWINFUSE_PLANNER
from nnunetv2_swinfuse.benchmark.cells import Workspace
from nnunetv2_swinfuse.benchmark.commands import Processes
from nnunetv2_swinfuse.benchmark.digests import file_digests
from nnunetv2_swinfuse.benchmark.encoder_records import encoder_of, pretraining_seconds, seen_cases
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.places import Place
from nnunetv2_swinfuse.benchmark.preparation import Preparation
from nnunetv2_swinfuse.benchmark.raw_dataset import find_dataset
from nnunetv2_swinfuse.errors import BenchmarkError
from nnunetv2_swinfuse.nnunet_names import RAW
from pretraining.options import build_parser, check_options

from .tables import DATASET, make_experiment, read_json

pytestmark = pytest.mark.slow


@pytest.fixture
def planned(monkeypatch):
    """Commands of planning write plans in place of making them; they are returned."""
    commands = []

    def call(self, command, environment, log, keep_open=None, cores=()):
        commands.append(list(command))
        if "plan_and_preprocess" in command[0]:
            plans = Path(environment["nnUNet_preprocessed"]) / DATASET / f"{PLANS[planner_of(command)]}.json"
            write_json(plans, {"configurations": {"3d_fullres": {"data_identifier": planner_of(command)}}})

    monkeypatch.setattr(Processes, "call", call)
    return commands


def planner_of(command):
    return option(command, "-pl") if "-pl" in command else SWINFUSE_PLANNER


def preprocess(tmp_path, **changes):
    experiment = make_experiment(**changes)
    preparation = Preparation(experiment, Workspace(tmp_path / "work", tmp_path / "results"), Processes())
    for planner in (DEFAULT_PLANNER, SWINFUSE_PLANNER):
        preparation.preprocess(find_dataset(901), planner, Place(1))


def test_a_target_spacing_reaches_every_planner(raw, planned, tmp_path):
    preprocess(tmp_path, spacing=[8, 4, 2.5])
    planning = [command for command in planned if "plan_and_preprocess" in command[0]]
    assert len(planning) == 2
    for command in planning:
        assert command[command.index("-overwrite_target_spacing") + 1 :][:3] == ["8", "4", "2.5"]
    # Nothing is prepared twice, and nothing at another spacing beside it.
    preprocess(tmp_path, spacing=[8, 4, 2.5])
    assert len([command for command in planned if "plan_and_preprocess" in command[0]]) == 2
    with pytest.raises(BenchmarkError, match=r"at the spacing 8 4 2.5, the experiment now says that nnU-"):
        preprocess(tmp_path)


def test_nnunets_own_spacing_is_the_default(raw, planned, tmp_path):
    preprocess(tmp_path)
    assert not any("-overwrite_target_spacing" in command for command in planned)
    with pytest.raises(BenchmarkError, match="at the spacing that nnU-Net chose, the experiment now says 8 4 4"):
        preprocess(tmp_path, spacing=[8, 4, 4])


def test_changed_files_are_not_mixed_with_what_is_prepared(raw, planned, tmp_path):
    preprocess(tmp_path)
    labels = sorted((raw / "labelsTr").iterdir())
    before = labels[0].read_bytes()
    labels[0].write_bytes(labels[1].read_bytes())
    with pytest.raises(BenchmarkError, match=f"prepared from other images or labels than those that are in {raw}"):
        preprocess(tmp_path)
    labels[0].write_bytes(before)
    preprocess(tmp_path)
    # The record of an earlier version.
    record = tmp_path / "work" / "nnUNet_preprocessed" / DATASET / "prepared.json"
    write_json(record, {name: value for name, value in read_json(record).items() if name != "files_sha256"})
    labels[0].write_bytes(labels[1].read_bytes())
    preprocess(tmp_path)


def test_an_image_under_two_names_is_refused_before_anything_is_prepared(raw, planned, tmp_path):
    images = find_dataset(901).images
    first, second = sorted(images)[:2]
    content = gzip.decompress(images[first][0].read_bytes())
    images[second][0].write_bytes(gzip.compress(content, compresslevel=1, mtime=1))
    with pytest.raises(BenchmarkError, match=f"{first} and {second} have the same image"):
        preprocess(tmp_path)
    assert planned == []


def test_every_planner_reads_the_images_in_the_orientation_of_the_experiment(raw, tmp_path, monkeypatch):
    raws = []
    monkeypatch.setattr(Processes, "call", lambda self, command, environment, *rest: raws.append(environment[RAW]))
    plans = tmp_path / "work" / "nnUNet_preprocessed" / DATASET
    for planner in (DEFAULT_PLANNER, SWINFUSE_PLANNER):
        write_json(plans / f"{PLANS[planner]}.json", {"configurations": {"3d_fullres": {"data_identifier": planner}}})
    preprocess(tmp_path, orientation="RAS")
    assert raws == [str(tmp_path / "work" / "nnUNet_raw")] * 3
    content = read_json(Path(raws[0]) / DATASET / "dataset.json")
    assert content["overwrite_image_reader_writer"] == "SimpleITKIOWithReorient"
    with pytest.raises(BenchmarkError, match="prepared with the orientation RAS, the experiment now says as_stored"):
        preprocess(tmp_path)
    # The record of an earlier version.
    record = plans / "prepared.json"
    write_json(record, {name: value for name, value in read_json(record).items() if name != "orientation"})
    with pytest.raises(BenchmarkError, match="prepared with the orientation as_stored, the experiment now says RAS"):
        preprocess(tmp_path, orientation="RAS")
    preprocess(tmp_path)
    assert len(raws) == 3


@pytest.fixture
def pairs(raw):
    """A collection of two CT/MR pairs whose images are cases 0 and 5, 1 and 6 of the dataset, compressed otherwise."""
    for name, side, source in (("a", "ct", 0), ("b", "ct", 1), ("a", "mr", 5), ("b", "mr", 6)):
        path = raw.parent / "Pairs" / side / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = gzip.decompress((raw / "imagesTr" / f"case_{source:03d}_0000.nii.gz").read_bytes())
        path.write_bytes(gzip.compress(content, compresslevel=1, mtime=1))


@pytest.fixture
def preprocessed():
    """Options of the commands that preprocess a collection."""
    return []


@pytest.fixture
def pretrained(monkeypatch, preprocessed):
    """Commands of `swinfuse_pretrain` write an encoder in place of training one; they are returned."""
    commands = []

    def call(self, command, environment, log, keep_open=None, cores=()):
        options = build_parser().parse_args(command[1:])
        check_options(options)
        # Volumes that others may be reading are written by one process at a time, and never removed.
        assert options.preprocess_only != options.train_only
        if options.preprocess_only:
            assert not options.overwrite
            preprocessed.append(options)
            return
        commands.append(list(command))
        encoder = Path(environment["nnUNet_results"]) / "swinfuse" / "encoder.pth"
        encoder.parent.mkdir(parents=True, exist_ok=True)
        encoder.write_text(" ".join(command))
        settings = {"recipe": options.recipe, "seed": options.seed}
        write_json(Path(environment["nnUNet_results"]) / "Pairs" / "swinfuse__base" / "configuration.json", settings)

    monkeypatch.setattr(Processes, "call", call)
    monkeypatch.setattr(preparation, "training_seconds", lambda results: 1.0)
    return commands


def prepare(tmp_path, test_cases=(), **changes):
    """Pretrains what an experiment needs; returns the experiment and its workspace."""
    pretraining = {"collections": ["Pairs"], "steps": 1, **changes.pop("pretraining", {})}
    experiment = make_experiment(pretraining=pretraining, **changes)
    workspace = Workspace(tmp_path / "work", tmp_path / "work" / "results")
    images = [path for case in test_cases for path in find_dataset(901).images[case]]
    prepared = Preparation(experiment, workspace, Processes(), images)
    prepared.check(experiment.pretraining_runs)
    for run in experiment.pretraining_runs:
        prepared.pretrain(run, Place(1))
    assert prepared.finished_pretrainings() == [run.name for run in experiment.pretraining_runs]
    return experiment, workspace


def option(command, name):
    return command[command.index(name) + 1]


def test_images_that_pretraining_learns_from_are_found_in_other_collections(
    raw, pairs, pretrained, preprocessed, tmp_path
):
    experiment, workspace = prepare(tmp_path, arms=["swinfuse", "mr"])
    dataset = find_dataset(901)
    digests = {
        case: list(file_digests(paths, tmp_path / "cache.json").values()) for case, paths in dataset.images.items()
    }
    expected = {"swinfuse": ["case_000", "case_001", "case_005", "case_006"], "mr": ["case_005", "case_006"]}
    for run in experiment.pretraining_runs:
        assert seen_cases(workspace.pretraining(run), digests) == expected[run.recipe]
    assert [options.leave_out for options in preprocessed] == [None, None]


def test_a_budget_in_minutes_becomes_the_steps_that_fit_into_it(raw, pairs, pretrained, tmp_path):
    # Twenty timed steps take a second (see the fixture), so half a minute is 600.
    budget = {"steps": None, "minutes": 0.5}
    experiment, workspace = prepare(tmp_path, arms=["swinfuse"], pretraining=budget)
    assert [option(command, "--steps") for command in pretrained] == ["20", "600"]
    (run,) = experiment.pretraining_runs
    assert read_json(workspace.pretraining(run) / "encoder.json")["steps"] == 600


def test_arms_from_random_weights_need_no_steps_of_pretraining(raw, pairs, pretrained, tmp_path):
    alone = {"name": "alone", "like": "scratch", "recipe": "simmim"}
    budget = {"steps": None, "minutes": 0.5}
    experiment, workspace = prepare(tmp_path, arms=["scratch", alone, "swinfuse"], pretraining=budget)
    # `scratch` takes its sizes from the encoder that `swinfuse` begins with anyway.
    assert [(option(command, "--recipe"), option(command, "--steps")) for command in pretrained] == [
        ("swinfuse", "20"), ("swinfuse", "600"), ("simmim", "0"),
    ]  # fmt: skip
    both, sizes = experiment.pretraining_runs
    assert read_json(workspace.pretraining(sizes) / "encoder.json")["steps"] == 0
    assert pretraining_seconds(experiment, workspace, sizes) == 0
    assert pretraining_seconds(experiment, workspace, both) == 1
    with pytest.raises(BenchmarkError, match=r"simmim: not pretrained.*Move the folder away"):
        prepare(tmp_path, arms=["scratch", alone, "swinfuse", "simmim"], pretraining=budget)


@pytest.mark.parametrize("budget", [{"steps": 7}, {"steps": None, "minutes": 0.5}])
def test_an_encoder_that_is_frozen_as_initialised_is_not_pretrained(raw, pairs, pretrained, tmp_path, budget):
    experiment, workspace = prepare(tmp_path, arms=["frozen", "frozen_random"], pretraining=budget)
    steps = {"swinfuse": ["7"] if budget["steps"] else ["20", "600"], "none": ["0"]}
    expected = [(recipe, number) for recipe, numbers in steps.items() for number in numbers]
    assert [(option(command, "--recipe"), option(command, "--steps")) for command in pretrained] == expected
    frozen, initial = experiment.pretraining_runs
    assert read_json(workspace.pretraining(frozen) / "encoder.json")["steps"] == int(steps["swinfuse"][-1])
    record = workspace.pretraining(initial) / "encoder.json"
    assert read_json(record)["steps"] == 0
    # It is complete as it is; one that an earlier version has trained is not it.
    prepare(tmp_path, arms=["frozen", "frozen_random"], pretraining=budget)
    write_json(record, {**read_json(record), "steps": 7})
    with pytest.raises(BenchmarkError, match="trained for 7 steps by an earlier version; expected initial weights"):
        prepare(tmp_path, arms=["frozen", "frozen_random"], pretraining=budget)


def test_patients_with_a_test_image_are_left_out_of_pretraining(raw, pairs, pretrained, preprocessed, tmp_path):
    experiment, workspace = prepare(tmp_path, ["case_005", "case_009"], arms=["swinfuse"])
    (options,) = preprocessed
    # The pair's CT is no test image, but the same patient's.
    assert Path(options.leave_out).read_text() == "a\n"
    (run,) = experiment.pretraining_runs
    folder = workspace.pretraining(run)
    assert read_json(folder / "encoder.json")["left_out"] == ["a"]
    images = find_dataset(901).images
    digests = {case: list(file_digests(images[case], tmp_path / "cache.json").values()) for case in images}
    assert seen_cases(folder, digests) == ["case_001", "case_006"]


def test_a_transductive_pretraining_leaves_nobody_out(raw, pairs, pretrained, preprocessed, tmp_path):
    prepare(tmp_path, ["case_005"], arms=["swinfuse"], transductive=True)
    assert preprocessed[0].leave_out is None


def test_pretrainings_without_other_patients_are_refused(raw, pairs, pretrained, tmp_path):
    prepare(tmp_path, ["case_005"], arms=["swinfuse"])
    with pytest.raises(
        BenchmarkError, match=r"without 1 patients that are test cases, now there are 0; differing: a\."
    ):
        prepare(tmp_path, [], arms=["swinfuse", "ct"])
    with pytest.raises(BenchmarkError, match="every patient is a test case: none is left"):
        prepare(tmp_path / "other", ["case_000", "case_006"], arms=["swinfuse"])


def test_every_seed_has_an_encoder_of_its_own_where_asked_for(raw, pairs, pretrained, tmp_path):
    experiment, workspace = prepare(tmp_path, arms=["swinfuse"], seeds=[0, 7], pretraining={"per_seed": True})
    assert [option(command, "--seed") for command in pretrained] == ["0", "7"]
    of_seeds = [encoder_of(experiment, experiment.arms[0], seed, workspace) for seed in (0, 7)]
    assert [encoder["seed"] for encoder in of_seeds] == [0, 7]
    assert [encoder["learning_settings"] for encoder in of_seeds] == [{"recipe": "swinfuse"}] * 2
    assert of_seeds[0]["sha256"] != of_seeds[1]["sha256"]
    assert "pretraining/swinfuse__seed_7/" in of_seeds[1]["path"]


def test_arms_of_one_recipe_differ_in_their_own_settings(raw, pairs, pretrained, tmp_path):
    small = {"name": "small", "like": "swinfuse", "pretraining": {"feature_size": 8, "strides": [[1, 1, 1], [2, 2, 2]]}}
    changes = {"settings": {"feature_size": 16, "quarter_turns": False, "depths": [2, 2]}}
    experiment, workspace = prepare(tmp_path, arms=["swinfuse", small], pretraining=changes)
    first, second = pretrained
    assert [option(command, "--feature_size") for command in pretrained] == ["16", "8"]
    assert first[first.index("--depths") :][:3] == ["--depths", "2", "2"]
    assert "--no-quarter_turns" in first
    assert json.loads(option(second, "--strides")) == [[1, 1, 1], [2, 2, 2]]
    assert [workspace.pretraining(run).name for run in experiment.pretraining_runs] == [
        "swinfuse", "swinfuse__feature_size_8__strides_1_1_1_2_2_2"
    ]  # fmt: skip


def test_an_encoder_of_another_pretraining_is_not_used(tmp_path):
    def prepared(**pretraining):
        experiment = make_experiment(arms=["swinfuse"], pretraining={"collections": ["Pairs"], **pretraining})
        return Preparation(experiment, workspace, Processes())

    workspace = Workspace(tmp_path, tmp_path / "results")
    first = prepared(steps=2)
    (run,) = first.experiment.pretraining_runs
    pretraining = first.experiment.to_dict()["pretraining"]
    # Written before there was this field.
    del pretraining["per_seed"]
    record = {"recipe": "swinfuse", "sha256": "e", "pretraining": pretraining}
    write_json(workspace.pretraining(run) / "encoder.json", record)
    first.check([run])
    first.pretrain(run, Place(1))
    # The folder may have been moved: the file is where the workspace is now.
    encoder = encoder_of(first.experiment, first.experiment.arm("swinfuse"), 0, workspace)
    assert encoder["path"] == str(tmp_path / "pretraining" / "swinfuse" / "nnUNet_results" / "swinfuse" / "encoder.pth")
    with pytest.raises(
        BenchmarkError, match=r'pretrained with .*"steps": 2.*now says .*"steps": 3.*Move the folder away'
    ):
        prepared(steps=3).check([run])


def test_an_encoder_of_other_settings_in_a_folder_of_the_same_name_is_not_used(tmp_path):
    def prepared(strength):
        arm = {"name": "own", "like": "swinfuse", "pretraining": {"dim_initial_scale": strength}}
        return Preparation(
            make_experiment(arms=[arm], pretraining={"collections": ["Pairs"], "steps": 1}), workspace, Processes()
        )

    workspace = Workspace(tmp_path, tmp_path / "results")
    first, other = prepared(0.5), prepared(-0.5)
    (run,), (changed,) = first.experiment.pretraining_runs, other.experiment.pretraining_runs
    assert run.name == changed.name
    record = {"settings": dict(run.settings), "pretraining": first.experiment.to_dict()["pretraining"]}
    write_json(workspace.pretraining(run) / "encoder.json", record)
    first.check([run])
    with pytest.raises(BenchmarkError, match=r"pretrained with the settings .*0.5.*an arm now has .*-0.5"):
        other.check([changed])
