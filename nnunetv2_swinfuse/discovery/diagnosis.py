"""What nnU-Net sees of this package's trainers, and what to do: `swinfuse_register --check`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from nnunetv2_swinfuse.compatibility import NNUNET_BELOW, NNUNET_FROM, nnunet_warning
from nnunetv2_swinfuse.nnunet_names import EXTERNAL_TRAINERS, STOCK_TRAINER, TRAINER

TRAINER_MODULE = "nnunetv2_swinfuse.training.trainer"
# The end of the path of this package's folder for the variable, in every installation.
FOLDER_END = Path("nnunetv2_swinfuse", "discovery", "external_trainers")

# nnU-Net's commands, unlike `python -c`, do not import from the current folder, where a checkout of nnunetv2 may lie.
PROBE = f"""
import sys
sys.path[:] = [path for path in sys.path if path]
import json, os, nnunetv2
answer = {{"nnunetv2": nnunetv2.__path__[0], "variable": os.environ.get("{EXTERNAL_TRAINERS}")}}
print(json.dumps(answer))
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
find("{STOCK_TRAINER}")
trainer = find("{TRAINER}")
answer.update(module=trainer.__module__, file=sys.modules[trainer.__module__].__file__)
print(json.dumps(answer))
"""


def check(path_file: Path, line: str, folder: Path, site: Path | None = None) -> bool:
    """Prints what nnU-Net sees and what to do; True when it finds this package's trainers.

    Args:
        path_file: the registration's `.pth` file, which may not exist.
        line: what it should hold.
        folder: this package's folder for `nnUNet_extTrainer`.
        site: a folder whose `.pth` files the new Python process reads besides its own.
    """
    result = probe(site)
    answer = _last_answer(result.stdout)
    registered = path_file.is_file()
    print(f"Python environment     {sys.prefix}")
    for line_of_nnunet in _nnunet_words(answer.get("nnunetv2")):
        print(f"nnU-Net                {line_of_nnunet}")
    print(f"nnUNetv2_train         {_command_words('nnUNetv2_train')}")
    print(f"Trainers               {folder}")
    outdated = registered and path_file.read_text() != line
    print(
        f"Registered             {'yes' if registered else 'no'} ({path_file})"
        + (", by another version of this package: register again with swinfuse_register" if outdated else "")
    )
    for words in variable_words(os.environ.get(EXTERNAL_TRAINERS), folder):
        print(f"{EXTERNAL_TRAINERS}      {words}")
    if result.returncode == 0 and answer["module"] == TRAINER_MODULE:
        scope = (
            "every new process of this environment"
            if registered
            else f"processes that are given {EXTERNAL_TRAINERS} only"
        )
        print(
            f"nnU-Net finds {TRAINER} and its own {STOCK_TRAINER}, in {scope}: nnUNetv2_train ... -tr {TRAINER} works."
        )
        if not registered:
            print("To do, to make it permanent: swinfuse_register")
        return True
    if result.returncode == 0:
        print(f"nnU-Net finds another {TRAINER}: {answer['file']}")
        print(f"To do: delete that file, or remove its folder from {EXTERNAL_TRAINERS}; nnU-Net uses the first match.")
        return False
    problem = (result.stderr.strip().splitlines() or ["no message"])[-1]
    print(f"nnU-Net does not find {TRAINER}: {problem}")
    print(f"To do: {_remedy(problem, result.stdout, answer, registered, path_file, folder)}")
    return False


def probe(site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Asks nnU-Net itself, in a fresh process with this one's environment, for the trainer and for a stock one."""
    begin = "" if site is None else f"import site; site.addsitedir({str(site)!r})\n"
    return subprocess.run([sys.executable, "-c", begin + PROBE], capture_output=True, text=True, check=False)


def variable_words(value: str | None, folder: Path) -> Iterator[str]:
    """One line for each folder that `nnUNet_extTrainer` names, with what is wrong with it.

    Args:
        value: the variable; None when it is not set.
        folder: this package's folder.
    """
    paths = [path for path in (value or "").split(os.pathsep) if path.strip()]
    if not paths:
        yield "not set" if value is None else "empty"
    for path in paths:
        if not os.path.isdir(path):
            yield f"{path} (no such folder; nnU-Net skips it)"
        elif Path(path).resolve() == folder:
            yield f"{path} (this package)"
        elif Path(path).resolve().parts[-len(FOLDER_END.parts) :] == FOLDER_END.parts:
            yield f"{path} (another installation of this package; remove it, or unset {EXTERNAL_TRAINERS})"
        else:
            yield f"{path} (not of this package; kept)"


def _nnunet_words(imported: str | None) -> Iterator[str]:
    """Which nnunetv2 is imported; whether there are others, and whether this version was tested."""
    installed = {_source(distribution): distribution for distribution in reversed(list(distributions(name="nnunetv2")))}
    if not imported and not installed:
        yield "not installed in this environment"
        return
    versions = {source: distribution.version for source, distribution in installed.items()}
    if imported is None:
        yield "cannot be imported; installed are: " + ", ".join(f"{v} ({s})" for s, v in versions.items())
        return
    root = Path(imported).resolve().parent
    if root not in installed:
        yield f"{imported}, which is not the installed package (PYTHONPATH, or a folder of sources, comes first)"
    for source, distribution in sorted(installed.items(), key=lambda item: item[0] != root):
        kind = "editable" if _is_editable(distribution) else "installed"
        yield f"{distribution.version}, {kind} in {source}" + (
            "" if source == root else " (not the one that Python imports)"
        )
    if root in versions and (warning := nnunet_warning(versions[root])):
        yield f"WARNING: {warning}"


def _is_editable(installed: Distribution) -> bool:
    return bool(_direct_url(installed).get("dir_info", {}).get("editable"))


def _source(installed: Distribution) -> Path:
    """The folder that holds the package: site-packages, or the sources of an editable installation."""
    if _is_editable(installed):
        return Path(unquote(urlparse(_direct_url(installed)["url"]).path)).resolve()
    return Path(str(installed.locate_file(""))).resolve()


def _direct_url(installed: Distribution) -> dict[str, Any]:
    return json.loads(installed.read_text("direct_url.json") or "{}")


def _command_words(command: str) -> str:
    path = shutil.which(command)
    if path is None:
        return "not on PATH; activate this environment"
    own_folders = {Path(sysconfig.get_path("scripts")), Path(sys.executable).parent}
    # A user's installation has its commands elsewhere; their first line names the Python.
    with open(path, "rb") as file:
        interpreter = Path(file.readline().decode(errors="replace").lstrip("#!").strip()).parent
    if Path(path).parent in own_folders or interpreter in own_folders:
        return path
    return f"{path} belongs to another Python; this registration has no effect there"


def _last_answer(output: str) -> dict[str, Any]:
    answers = [line for line in output.splitlines() if line.startswith('{"nnunetv2"')]
    return json.loads(answers[-1]) if answers else {}


def _remedy(problem: str, output: str, answer: dict[str, Any], registered: bool, path_file: Path, folder: Path) -> str:
    if "No module named 'nnunetv2'" in problem:
        return f'pip install "nnunetv2>={NNUNET_FROM},<{NNUNET_BELOW}" in this environment'
    if "find_objects" in problem:
        return f'this nnunetv2 has no {EXTERNAL_TRAINERS}: pip install "nnunetv2>={NNUNET_FROM},<{NNUNET_BELOW}"'
    searched = [line.split(": ", 1)[1] for line in output.splitlines() if line.startswith("Searching in: ")]
    if searched and "Could not find requested" not in problem:
        owner = "this package's" if Path(searched[-1]).resolve() == folder else "not this package's"
        remedy = f"repair it or remove the folder from {EXTERNAL_TRAINERS}"
        return f"a module in {searched[-1]} ({owner}) cannot be imported; {remedy}"
    if registered and not answer.get("variable"):
        return (
            f"registered, but Python does not act on {path_file}: it was started without site-packages (-S), or "
            "nnunetv2_swinfuse is not found from there. For this shell:\n"
            f"    export {EXTERNAL_TRAINERS}={folder}"
        )
    export = f"export {EXTERNAL_TRAINERS}=" + (
        f'"${EXTERNAL_TRAINERS}{os.pathsep}{folder}"' if answer.get("variable") else str(folder)
    )
    return f"swinfuse_register (for this environment, permanently), or for this shell only:\n    {export}"
