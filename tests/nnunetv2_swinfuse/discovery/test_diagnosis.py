"""The words of `swinfuse_register --check`; nnU-Net's answers are simulated here, tests/installation asks it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_swinfuse.discovery import diagnosis
from nnunetv2_swinfuse.discovery.register import PTH_LINE, PTH_NAME, external_trainers_folder

NOT_FOUND = "RuntimeError: Could not find requested nnunet trainer nnUNetTrainerSwinFUSE in ..."


def distribution(site: Path, version: str, editable: Path | None = None) -> Path:
    """Metadata of an nnunetv2 in a folder of packages, as pip writes them; the folder that holds the package."""
    info = site / f"nnunetv2-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: nnunetv2\nVersion: {version}\n")
    if editable:
        url = {"url": editable.as_uri(), "dir_info": {"editable": True}}
        (info / "direct_url.json").write_text(json.dumps(url))
    return editable or site


@pytest.fixture
def run_check(tmp_path, monkeypatch, capsys):
    """What `--check` returns and prints when nnU-Net answers so."""
    monkeypatch.delenv(diagnosis.EXTERNAL_TRAINERS, raising=False)

    def check(root: Path | None, problem="", registered: str | None = None, searched=(), **answer) -> tuple[bool, str]:
        if root is not None:
            answer["nnunetv2"] = str(root / "nnunetv2")
        lines = [json.dumps(dict(sorted(answer.items(), key=lambda item: item[0] != "nnunetv2")))] if answer else []
        lines += [f"Searching in: {path}" for path in searched]
        result = subprocess.CompletedProcess([], 1 if problem else 0, "\n".join(lines), f"Traceback\n{problem}\n")
        monkeypatch.setattr(diagnosis, "probe", lambda _: result)
        path_file = tmp_path / PTH_NAME
        if registered is not None:
            path_file.write_text(registered)
        success = diagnosis.check(path_file, PTH_LINE, external_trainers_folder())
        return success, capsys.readouterr().out

    return check


@pytest.fixture
def no_site_packages(monkeypatch):
    """No nnunetv2 but those of the test."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])


def test_two_installations_of_nnunet_are_told_apart(run_check, no_site_packages, tmp_path, monkeypatch):
    wheel = distribution(tmp_path / "site", "2.8.1")
    sources = distribution(tmp_path / "other_site", "2.8.0", editable=tmp_path / "sources of mine")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), str(tmp_path / "other_site"), *sys.path])
    _, output = run_check(wheel, NOT_FOUND)
    assert f"nnU-Net                2.8.1, installed in {wheel}\n" in output
    assert f"nnU-Net                2.8.0, editable in {sources} (not the one that Python imports)\n" in output
    _, output = run_check(sources, NOT_FOUND)
    assert f"nnU-Net                2.8.0, editable in {sources}\n" in output
    assert f"2.8.1, installed in {wheel} (not the one that Python imports)" in output


def test_sources_before_the_installed_nnunet_are_named(run_check, no_site_packages, tmp_path, monkeypatch):
    wheel = distribution(tmp_path / "site", "2.8.1")
    monkeypatch.setattr(sys, "path", [str(wheel), *sys.path])
    _, output = run_check(tmp_path / "checkout", NOT_FOUND)
    assert f"{tmp_path / 'checkout' / 'nnunetv2'}, which is not the installed package (PYTHONPATH" in output
    assert f"2.8.1, installed in {wheel} (not the one" in output


def test_an_older_nnunet_is_named_as_the_cause(run_check, no_site_packages, tmp_path, monkeypatch):
    site = distribution(tmp_path / "site", "2.7.0")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    success, output = run_check(site, "ModuleNotFoundError: No module named 'nnunetv2.utilities.find_objects'")
    assert not success
    assert "WARNING: nnunetv2 2.7.0 is installed" in output
    assert 'To do: this nnunetv2 has no nnUNet_extTrainer: pip install "nnunetv2>=2.8.0,<2.9"' in output


def test_a_missing_nnunet_is_named_as_the_cause(run_check, no_site_packages):
    success, output = run_check(None, "ModuleNotFoundError: No module named 'nnunetv2'")
    assert not success
    assert "nnU-Net                not installed in this environment" in output
    assert 'To do: pip install "nnunetv2>=2.8.0,<2.9" in this environment' in output


def test_the_cause_is_a_module_of_the_users_that_cannot_be_imported(run_check, tmp_path, monkeypatch):
    monkeypatch.setenv(diagnosis.EXTERNAL_TRAINERS, str(tmp_path))
    success, output = run_check(tmp_path, "ModuleNotFoundError: No module named 'wandb'", PTH_LINE, searched=[tmp_path])
    assert not success
    assert f"To do: a module in {tmp_path} (not this package's) cannot be imported; repair it or remove" in output


def test_a_copy_of_the_trainer_inside_nnunet_is_not_taken_for_this_packages(run_check, tmp_path):
    copy = str(tmp_path / "nnunetv2" / "training" / "nnUNetTrainer" / "nnUNetTrainerSwinFUSE.py")
    module = "nnunetv2.training.nnUNetTrainer.nnUNetTrainerSwinFUSE"
    success, output = run_check(tmp_path, registered=PTH_LINE, module=module, file=copy)
    assert not success
    assert f"finds another nnUNetTrainerSwinFUSE: {copy}\nTo do: delete that file" in output


@pytest.mark.parametrize(
    ("registered", "words"),
    [
        (PTH_LINE, "in every new process of this environment: nnUNetv2_train ... -tr nnUNetTrainerSwinFUSE works"),
        ("import os\n", "by another version of this package: register again with swinfuse_register"),
        (None, "in processes that are given nnUNet_extTrainer only: nnUNetv2_train"),
    ],
)
def test_success_says_for_which_processes_it_holds(run_check, tmp_path, registered, words):
    success, output = run_check(tmp_path, registered=registered, module=diagnosis.TRAINER_MODULE, file="trainer.py")
    assert success
    assert words in output
    assert ("make it permanent: swinfuse_register" in output) == (registered is None)


def test_a_registration_that_python_does_not_read_is_explained(run_check, tmp_path):
    success, output = run_check(tmp_path, NOT_FOUND, registered=PTH_LINE, variable=None)
    assert not success
    assert f"registered, but Python does not act on {tmp_path / PTH_NAME}" in output
    assert f"export nnUNet_extTrainer={external_trainers_folder()}" in output


def test_the_export_that_is_proposed_keeps_what_the_variable_names(run_check, tmp_path, monkeypatch):
    monkeypatch.setenv(diagnosis.EXTERNAL_TRAINERS, str(tmp_path))
    _, output = run_check(tmp_path, NOT_FOUND, variable=str(tmp_path))
    assert f'export nnUNet_extTrainer="$nnUNet_extTrainer{os.pathsep}{external_trainers_folder()}"' in output


def test_every_folder_of_the_variable_is_judged(tmp_path):
    ours = external_trainers_folder()
    leftover = tmp_path / "old_site" / diagnosis.FOLDER_END
    leftover.mkdir(parents=True)
    value = os.pathsep.join(map(str, [tmp_path, "", tmp_path / "gone", leftover, ours]))
    assert list(diagnosis.variable_words(value, ours)) == [
        f"{tmp_path} (not of this package; kept)",
        f"{tmp_path / 'gone'} (no such folder; nnU-Net skips it)",
        f"{leftover} (another installation of this package; remove it, or unset nnUNet_extTrainer)",
        f"{ours} (this package)",
    ]
    assert list(diagnosis.variable_words(None, ours)) == ["not set"]
    assert list(diagnosis.variable_words("", ours)) == ["empty"]


@pytest.mark.parametrize("interpreter", [sys.executable, "/usr/bin/python3"])
def test_a_command_of_another_python_is_told_apart(run_check, tmp_path, monkeypatch, interpreter):
    command = tmp_path / "nnUNetv2_train"
    command.write_text(f"#!{interpreter}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    _, output = run_check(tmp_path, NOT_FOUND)
    assert f"nnUNetv2_train         {command}" in output
    assert ("belongs to another Python" in output) == (interpreter != sys.executable)
    command.unlink()
    assert "nnUNetv2_train         not on PATH; activate this environment" in run_check(tmp_path, NOT_FOUND)[1]
