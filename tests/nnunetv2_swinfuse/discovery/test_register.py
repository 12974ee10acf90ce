import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunetv2_swinfuse.discovery import diagnosis
from nnunetv2_swinfuse.discovery import register as registration


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(registration.EXTERNAL_TRAINERS, raising=False)


@pytest.fixture
def site(tmp_path):
    return tmp_path


def variable_after_start(site: Path, first: str | None = None, hide_package: bool = False) -> str:
    """What a Python that starts with this site folder has in the variable, and that it starts without a complaint."""
    code = f"import os, site; site.addsitedir({str(site)!r}); print(os.environ.get('nnUNet_extTrainer', 'not set'))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if first is not None:
        environment[registration.EXTERNAL_TRAINERS] = first
    # Without site-packages the package is as good as uninstalled.
    options = ["-I", "-S"] if hide_package else []
    result = subprocess.run(
        [sys.executable, *options, "-c", code], env=environment, cwd=site, capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    return result.stdout.strip()


def installed_folder(site: Path) -> str:
    """The folder of the package that a Python started elsewhere imports: not that of a checkout pytest runs in."""
    code = "from nnunetv2_swinfuse.discovery.register import external_trainers_folder as f; print(f())"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=site, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_registering_names_the_folder_to_every_new_python(site):
    assert registration.register(site).parent == site
    registration.register(site)
    assert variable_after_start(site) == installed_folder(site)
    assert len(list(site.iterdir())) == 1


def test_folders_that_the_variable_already_names_are_kept_and_ours_is_not_named_twice(site):
    registration.register(site)
    ours = installed_folder(site)
    other = str(site / "other")
    assert variable_after_start(site, first=other) == os.pathsep.join([other, ours])
    assert variable_after_start(site, first=os.pathsep.join([ours, other])) == os.pathsep.join([ours, other])


def test_the_line_is_inert_when_the_package_is_gone(site):
    registration.register(site)
    assert variable_after_start(site, hide_package=True) == "not set"


def test_the_line_is_inert_when_an_empty_folder_of_the_packages_name_is_left(site):
    """Uninstalling leaves folders behind that hold files of others, such as bytecode; Python imports them as well."""
    registration.register(site)
    (site / "nnunetv2_swinfuse" / "discovery" / "external_trainers").mkdir(parents=True)
    assert variable_after_start(site, hide_package=True) == "not set"


def test_a_package_in_the_users_own_folder_is_registered_there(site, monkeypatch):
    monkeypatch.setattr(registration.python_site, "getusersitepackages", lambda: str(site))
    assert registration.site_packages() != site
    monkeypatch.setattr(registration, "distribution", lambda _: SimpleNamespace(locate_file=lambda name: site / name))
    assert registration.site_packages() == site


@pytest.mark.slow
def test_check_asks_nnunet_itself_in_a_new_process(site, capsys):
    registration.register(site)
    with pytest.raises(SystemExit) as exit_:
        registration.main(["--check", "--site", str(site)])
    assert exit_.value.code == 0
    assert "nnU-Net finds nnUNetTrainerSwinFUSE and its own nnUNetTrainer" in capsys.readouterr().out


@pytest.mark.slow
def test_check_fails_and_says_what_to_do_when_nnunet_does_not_find_them(site, capsys, monkeypatch):
    # A registered environment of the developer's must not help.
    monkeypatch.setattr(diagnosis, "PROBE", f"import os; os.environ.pop('nnUNet_extTrainer', 0)\n{diagnosis.PROBE}")
    with pytest.raises(SystemExit) as exit_:
        registration.main(["--check", "--site", str(site)])
    assert exit_.value.code == 1
    output = capsys.readouterr().out
    assert "swinfuse_register" in output
    assert f"export nnUNet_extTrainer={registration.external_trainers_folder()}" in output


def test_removing_leaves_nothing(site, capsys):
    registration.register(site)
    registration.main(["--remove", "--site", str(site)])
    assert not list(site.iterdir())
    registration.main(["--remove", "--site", str(site)])
    assert "nothing to remove" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(site, capsys):
    with pytest.raises(SystemExit) as exit_:
        registration.main(["--site", str(site / "absent")])
    assert exit_.value.code == 2
    assert "export nnUNet_extTrainer=" in capsys.readouterr().err


def test_visible_to_nnunet_knows_the_variable_and_the_registration(site, monkeypatch):
    monkeypatch.setattr(registration, "site_packages", lambda: site)
    assert not registration.visible_to_nnunet()
    registration.register()
    assert registration.visible_to_nnunet()
    registration.remove()
    monkeypatch.setenv(registration.EXTERNAL_TRAINERS, str(registration.external_trainers_folder()) + os.sep)
    assert registration.visible_to_nnunet()


def test_the_folder_holds_only_the_re_export():
    files = [path.name for path in registration.external_trainers_folder().iterdir() if path.name != "__pycache__"]
    assert files == ["swinfuse_trainers.py"]


def test_every_trainer_that_nnunet_finds_can_be_pickled_and_is_no_class_of_the_searched_folder(monkeypatch, capsys):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv(registration.EXTERNAL_TRAINERS, str(registration.external_trainers_folder()))
    for base in ("nnUNetTrainerSwinFUSE", "nnUNetTrainerSwinFUSEScratch"):
        for suffix, epochs in {"": 1000, "_1epoch": 1, "_5epochs": 5, "_20epochs": 20, "_250epochs": 250}.items():
            trainer = recursive_find_trainer_class_by_name(base + suffix)
            assert trainer.__name__ == base + suffix
            assert "__" not in trainer.__name__
            assert trainer.length == epochs
            assert pickle.loads(pickle.dumps(trainer)) is trainer


def test_registering_needs_nothing_but_the_standard_library():
    code = (
        "import sys, nnunetv2_swinfuse.discovery.register; "
        "print([name for name in ('torch', 'numpy', 'nnunetv2', 'SimpleITK') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
