import os
import stat

import pytest

from nnunetv2_swinfuse.demo import run
from nnunetv2_swinfuse.demo.volumes import DemoError


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        run.main(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_data_only_writes_both_layouts_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    run.main(["--data_only"])
    assert "swinfuse_pretrain -d SynthRAD" in capsys.readouterr().out
    assert len(list((tmp_path / "SynthRAD" / "Task1" / "brain").iterdir())) == 12
    assert len(list((tmp_path / "Dataset501_SwinFUSEDemo" / "imagesTr").iterdir())) == 10
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert "never overwritten" in fails(capsys, "--data_only")
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}


def test_no_two_seeds_share_a_patient(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(run, "write_synthrad", lambda _, patients, seed: drawn.extend(range(seed, seed + patients)))

    def write_cases(raw, number, name, *, modality, train_cases, test_cases, seed):
        drawn.extend(range(seed, seed + train_cases + test_cases))
        (raw / f"Dataset{number}_{name}").mkdir(parents=True)

    monkeypatch.setattr(run, "write_nnunet_raw", write_cases)
    for seed in range(4):
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / str(seed)))
        run.main(["--data_only", "--seed", str(seed)])
    assert len(set(drawn)) == len(drawn) == 4 * (12 + 13)
    assert "--seed is -1; expected 0 or more" in fails(capsys, "--data_only", "--seed", "-1")


def test_a_dataset_501_of_the_users_own_stands_in_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    (tmp_path / "Dataset501_Hippocampus").mkdir()
    assert "Dataset501_Hippocampus" in fails(capsys, "--data_only")
    assert not (tmp_path / "SynthRAD").exists()


def test_data_only_needs_to_know_where(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert "nnUNet_raw is not set" in fails(capsys, "--data_only")


def test_the_demo_works_beside_the_users_paths_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", "/precious")
    monkeypatch.setenv("SWINFUSE_CHECKPOINT", "/mine.pth")
    environment = run.demo_environment(tmp_path / "demo")
    assert all(environment[name] == str(tmp_path / "demo" / name) for name in run.PATHS)
    assert "SWINFUSE_CHECKPOINT" not in environment
    assert os.environ["nnUNet_results"] == "/precious"


def test_an_existing_folder_is_left_alone(tmp_path):
    assert run.unused_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo_2").mkdir()
    assert run.unused_folder(tmp_path / "demo") == tmp_path / "demo_3"


def test_a_command_that_fails_or_is_missing_is_named(tmp_path):
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(DemoError, match=r"status 3: .*broken --fast"):
        run.call([str(program), "--fast"], os.environ)
    with pytest.raises(DemoError, match="swinfuse_nothing is not installed"):
        run.call(["swinfuse_nothing"], os.environ)
