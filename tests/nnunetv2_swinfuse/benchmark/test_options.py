import json
from pathlib import Path

import pytest

from nnunetv2_swinfuse.benchmark.arms import ARMS
from nnunetv2_swinfuse.benchmark.options import build_parser, chosen_experiment, output_folder
from nnunetv2_swinfuse.errors import BenchmarkError

from .tables import make_experiment


def chosen(*words):
    return chosen_experiment(build_parser().parse_args([str(word) for word in words]))


def test_flags_are_the_same_experiment_as_the_file(tmp_path):
    path = tmp_path / "made.json"
    content = {
        "datasets": [501, 502],
        "arms": ["nnunet", "swinfuse"],
        "labels": [5, "all"],
        "seeds": [3, 4],
        "test_cases": 6,
        "device": "cpu",
        "length": {"epochs": 7, "iterations": 8},
        "pretraining": {"collections": ["CTMR"], "preset": "tiny", "steps": 9},
    }
    path.write_text(json.dumps(content))
    flags = "--name made -d 501 502 --arms nnunet swinfuse --labels 5 all --seeds 3 4 --test_cases 6 -device cpu"
    flags += " --epochs 7 --iterations 8 --pretrain_on CTMR --pretrain_preset tiny --pretrain_steps 9"
    assert chosen(*flags.split()) == chosen(path)


def test_defaults_are_nnunets_cross_validation_and_length():
    experiment = chosen("-d", 501, "--arms", "nnunet")
    assert (experiment.folds, experiment.labels, experiment.seeds) == ((0, 1, 2, 3, 4), ("all",), (0, 1, 2))
    assert (experiment.length.epochs, experiment.length.iterations) == (1000, 250)


def test_a_file_and_flags_of_an_experiment_are_refused(tmp_path):
    with pytest.raises(BenchmarkError, match=r"change arms, epochs there, not on the command line"):
        chosen(tmp_path / "made.json", "--arms", "nnunet", "--epochs", 2)


def test_where_everything_goes(monkeypatch, tmp_path):
    parser = build_parser()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "models"))
    expected = tmp_path / "models" / "swinfuse_benchmark" / "made"
    assert output_folder(parser.parse_args([]), make_experiment()) == expected
    assert output_folder(parser.parse_args(["-o", "here"]), make_experiment()) == Path.cwd() / "here"
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(BenchmarkError, match="nnUNet_results is not set"):
        output_folder(parser.parse_args([]), make_experiment())


def test_help_describes_every_arm():
    words = build_parser().format_help().split()
    assert set(ARMS) <= set(words)
