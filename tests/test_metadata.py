"""What the project says of itself: one version, and all files that an installation needs."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from zipfile import ZipFile

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = ("nnunetv2_swinfuse", "pretraining")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_versions_agree(project):
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation
    assert citation[1] == project["version"]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    # setuptools prefers pyproject.toml: a version or command in setup.cfg would be ignored or contradict it.
    assert set(setup.sections()) == {"options", "options.packages.find", "options.package_data"}
    assert set(setup["options"]) == {"packages", "include_package_data"}


def test_the_changelog_lists_the_version(project):
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{project['version']}]" in changelog


def test_every_command_can_be_imported(project):
    assert len(project["scripts"]) >= 5
    for name, target in project["scripts"].items():
        module, function = target.split(":")
        assert callable(getattr(import_module(module), function)), name


@pytest.mark.slow
def test_a_wheel_contains_every_tracked_file_of_the_packages(tmp_path):
    """Python modules, presets, recipes and `py.typed` alike: what git tracks is what an installation gets."""
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    source = tmp_path / "source"
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", *tracked.stdout.splitlines()):
        if (ROOT / name).is_file():  # a deletion may not be committed yet
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("a build needs setuptools from the package index, which cannot be reached")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in ZipFile(wheel).namelist() if name.startswith(tuple(f"{p}/" for p in PACKAGES))}
    expected = {path.relative_to(source).as_posix() for p in PACKAGES for path in (source / p).rglob("*.*")}
    assert packed == {name for name in expected if (source / name).is_file()}
