"""Virtual environments with nnunetv2 and this package, each as a wheel or editable, installed by pip or uv.

Cheap mode: torch and all other dependencies are those of the Python that runs the script, linked into a folder that a
`.pth` file names, without nnunetv2, this package and every `.pth` file; nnunetv2 and this package are installed with
`--no-deps`. It shows how the two are found, run and removed. It does not show that their dependencies resolve to
versions that work together; `full=True` does, which installs everything from the index (5 GB each).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

# Seconds for one command of an environment; ten times what the slowest takes on two idle cores.
TIME_LIMIT = 900
CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = "nnunetv2-swinfuse"
# Folders of the checkout that are no source.
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
# What an environment must have of its own, or what would bring in what is installed beside it.
NOT_LINKED = ("nnunetv2", "pretraining", "__editable__", "_distutils_hack", "distutils-precedence", "__pycache__")


class BuildError(RuntimeError):
    """An environment could not be built; the message holds the command and the end of its output."""


@dataclass(frozen=True)
class Combination:
    """One way of installing: `wheel` or `editable` for both packages, `pip` or `uv`, and nnunetv2's version."""

    nnunet: str
    package: str
    installer: str
    version: str

    def __str__(self) -> str:
        return f"{self.version}-{self.nnunet}-{self.package}-{self.installer}"


def combinations(versions: list[str]) -> list[Combination]:
    """All ways of installing these versions of nnunetv2."""
    kinds = ("wheel", "editable")
    return [Combination(*ways, version) for version in versions for ways in product(kinds, kinds, ("pip", "uv"))]


def run(*command: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Runs a command to its end.

    Raises:
        BuildError: when it fails.
    """
    words = [str(word) for word in command]
    result = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{' '.join(words)}\n{(result.stdout + result.stderr)[-2000:]}")
    return result.stdout


class Workshop:
    """A folder with the sources, the linked dependencies and uv; all that several environments share."""

    def __init__(self, folder: Path, full: bool = False) -> None:
        self.folder, self.full = folder, full
        self.sources = folder / "sources"
        folder.mkdir(parents=True, exist_ok=True)

    @cache  # noqa: B019 - one workshop lives as long as the script
    def dependencies(self) -> Path:
        """The folder of links; the first of two packages of one name wins, as in imports."""
        folder = self.folder / "dependencies"
        folder.mkdir()
        for entry in _installed_entries():
            if not entry.name.startswith(NOT_LINKED) and entry.suffix != ".pth" and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
        return folder

    @cache  # noqa: B019
    def uv(self) -> Path | None:
        """The uv command, installed from the index where it is not on PATH; None where neither works."""
        if found := shutil.which("uv"):
            return Path(found)
        tools = self.folder / "tools"
        try:
            run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tools, "uv")
        except BuildError as error:
            print(f"uv is neither on PATH nor can it be installed:\n{error}")
            return None
        return tools / "bin" / "uv"

    def package_source(self, name: str) -> Path:
        """A copy of the checkout: building and uninstalling leave nothing in the checkout itself."""
        return Path(shutil.copytree(CHECKOUT, self.sources / name / "nnunetv2-swinfuse", ignore=LEFT_OUT))

    def nnunet_source(self, name: str, version: str) -> Path:
        """nnunetv2's sources as the index has them, unpacked."""
        download = self.folder / "downloads"
        archive = download / f"nnunetv2-{version}.tar.gz"
        if not archive.is_file():
            index = ("--no-deps", "--no-binary", "nnunetv2", "--dest", download)
            run(sys.executable, "-m", "pip", "download", "--quiet", *index, f"nnunetv2=={version}")
        shutil.unpack_archive(archive, self.sources / name)
        return self.sources / name / archive.name.removesuffix(".tar.gz")

    def build(self, combination: Combination) -> Environment:
        """A new environment.

        Raises:
            BuildError: when a command fails.
        """
        environment = Environment(self.folder / "environments" / str(combination), combination, self.uv())
        environment.create()
        if not self.full:
            (environment.site / "dependencies.pth").write_text(f"{self.dependencies()}\n")
        nnunet = [f"nnunetv2=={combination.version}"]
        if combination.nnunet == "editable":
            nnunet = ["--editable", str(self.nnunet_source(str(combination), combination.version))]
        package = [str(self.package_source(str(combination)))]
        if combination.package == "editable":
            package.insert(0, "--editable")
        options = ["pytest"] if self.full else ["--no-deps"]
        for what in (nnunet, package):
            environment.installer("install", "--quiet", *options, *what)
        return environment


@dataclass(frozen=True)
class Environment:
    """A virtual environment and what installs into it."""

    folder: Path
    combination: Combination
    uv: Path | None

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        (site,) = self.folder.glob("lib/python3*/site-packages")
        return site

    def create(self) -> None:
        if self.combination.installer == "uv":
            run(self.uv, "venv", "--quiet", "--python", sys.executable, self.folder)
        else:
            run(sys.executable, "-m", "venv", self.folder)

    def installer(self, verb: str, *arguments: str) -> None:
        """`pip VERB` or `uv pip VERB` in this environment."""
        if self.combination.installer == "uv":
            run(self.uv, "pip", verb, "--python", self.python, *arguments)
        else:
            run(self.python, "-m", "pip", verb, *arguments)

    def uninstall_package(self) -> None:
        self.installer("uninstall", *(() if self.combination.installer == "uv" else ("--yes",)), PACKAGE)

    def run(self, command: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command of this environment, in a folder and with variables that know nothing of the checkout."""
        left_out = ("nnUNet", "SWINFUSE", "PYTHON", "VIRTUAL_ENV")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        environment |= {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", **variables}
        words = [str(self.folder / "bin" / command), *map(str, arguments)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": TIME_LIMIT}
        return subprocess.run(words, env=environment, cwd=self.folder, **options)


def _installed_entries() -> Iterator[Path]:
    for path in sys.path:
        if path and Path(path).name in ("site-packages", "dist-packages"):
            yield from sorted(Path(path).iterdir())
