"""What must hold in every environment, from installing to uninstalling, in this order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.installation.environments import CHECKOUT, Environment

LOOKUP = Path(__file__).with_name("lookup.py")
VARIABLE = "nnUNet_extTrainer"
SWINFUSE, STOCK, OWN = "nnUNetTrainerSwinFUSE", "nnUNetTrainer", "nnUNetTrainerMine"
SWINFUSE_MODULE, OWN_MODULE = "nnunetv2_swinfuse.training.trainer", "my_trainer"
PTH_NAME = "nnunetv2_swinfuse_trainers.pth"
# Relative to the folder of the tests.
ONE_MODEL = "behaviour/test_stock_inference.py::test_a_process_that_knows_nothing_of_the_trainers_predicts"


class CheckError(AssertionError):
    """What was found instead of what was expected."""


def checks(environment: Environment, end_to_end: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and function of each check; they build on each other."""
    own = own_trainers(environment)
    before = listing(environment)
    yield "not registered", lambda: check_not_registered(environment)
    yield "registered", lambda: check_registered(environment, own)
    yield "commands", lambda: check_commands(environment)
    if end_to_end:
        yield "trains, predicts", lambda: check_end_to_end(environment)
    yield "removed", lambda: check_removed(environment, before)
    yield "uninstalled", lambda: check_uninstalled(environment, own)


def listing(environment: Environment) -> set[str]:
    """Every file in site-packages but bytecode."""
    files = (path for path in environment.site.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(environment.site)) for path in files}


def own_trainers(environment: Environment) -> Path:
    """A user's folder with a trainer of their own."""
    folder = environment.folder / "own_trainers"
    folder.mkdir()
    (folder / f"{OWN_MODULE}.py").write_text(
        f"from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import {STOCK}\n\n\nclass {OWN}({STOCK}):\n    pass\n"
    )
    return folder


def look_up(environment: Environment, *names: str, **variables: str) -> dict[str, Any]:
    """What `lookup.py` says, once all stock trainers are found and both packages are those of the environment."""
    result = environment.run("python", LOOKUP, *names, **variables)
    lines = [line for line in result.stdout.splitlines() if line.startswith("LOOKUP ")]
    expect(result.returncode == 0 and len(lines) == 1, f"lookup failed: {(result.stdout + result.stderr)[-2000:]}")
    answer = json.loads(lines[0].removeprefix("LOOKUP "))
    expect(answer["stock"] > 50 and not answer["stock_missing"], f"stock trainers not found: {answer}")
    combination = environment.combination
    expect(answer["versions"]["nnunetv2"] == combination.version, f"another nnunetv2: {answer['versions']}")
    for package, kind in (("nnunetv2", combination.nnunet), ("swinfuse", combination.package)):
        inside = Path(answer[package] or environment.site).is_relative_to(environment.site)
        expect(
            inside == (kind == "wheel") or answer[package] is None, f"{package} is {kind}, imported {answer[package]}"
        )
    return answer


def check_not_registered(environment: Environment) -> None:
    """`--check` asks for a stock trainer first: that one is found, and is not what it complains of."""
    result = environment.run("swinfuse_register", "--check")
    said = ("Registered             no", f"does not find {SWINFUSE}: RuntimeError", "To do: swinfuse_register (")
    expect(result.returncode == 1, f"--check succeeds without registration: {result.stdout}")
    expect_words(result.stdout, *said, f"nnU-Net                {environment.combination.version}, ")
    expect_words(result.stdout, "editable in" if environment.combination.nnunet == "editable" else "installed in")
    expect_words(result.stdout, f"nnUNetv2_train         {environment.folder / 'bin' / 'nnUNetv2_train'}\n")
    expect("WARNING" not in result.stdout and "not the one" not in result.stdout, f"wrong words: {result.stdout}")
    expect(variable(environment) == "not set", "the variable is set without registration")


def check_registered(environment: Environment, own: Path) -> None:
    """`swinfuse_register` itself asks without a variable; here with a user's own folder in it, and in a child too."""
    result = environment.run("swinfuse_register")
    expect(result.returncode == 0, f"registration failed: {result.stdout}{result.stderr}")
    expect_words(result.stdout, "Registered             yes", f"finds {SWINFUSE}", "in every new process")
    answer = look_up(environment, STOCK, SWINFUSE, OWN, "--spawn", **{VARIABLE: str(own)})
    stock_module = f"nnunetv2.training.nnUNetTrainer.{STOCK}"
    expect(answer["found"] == {STOCK: stock_module, SWINFUSE: SWINFUSE_MODULE, OWN: OWN_MODULE}, f"found: {answer}")
    expect(answer["spawned"] == answer["found"], f"found in a spawned process: {answer}")
    first, ours = answer["variable"].split(":")
    expect(first == str(own) and ours.endswith("external_trainers"), f"the user's folder is not kept: {answer}")


def check_commands(environment: Environment) -> None:
    result = environment.run("swinfuse_train", "--help")
    expect(result.returncode == 0, f"swinfuse_train --help: {result.stderr}")
    expect_words(result.stdout, f"-tr {SWINFUSE}", "-pretrained_weights")
    # nnU-Net looks for the trainer first, then misses the dataset.
    folders = {f"nnUNet_{name}": str(environment.folder) for name in ("raw", "preprocessed", "results")}
    result = environment.run("nnUNetv2_train", 999, "3d_fullres", 0, "-tr", SWINFUSE, "-device", "cpu", **folders)
    expect(result.returncode != 0, "nnUNetv2_train trains a dataset that is not there")
    expect_words(result.stdout, f"Using trainer '{SWINFUSE}'")
    expect_words(result.stderr, "999")
    expect("requested nnunet trainer" not in result.stderr, f"nnUNetv2_train: {result.stderr[-1000:]}")


def check_end_to_end(environment: Environment) -> None:
    """One test of the package's own: nnU-Net plans, trains two iterations with the trainer it finds, and predicts.

    The tests are copied, so that pytest, which imports from the folder above them, does not import the checkout.
    """
    folder = Path(shutil.copytree(CHECKOUT / "tests", environment.folder / "copied" / "tests"))
    where = folder / ONE_MODEL
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", folder.parent, "--basetemp", environment.folder / "tests")
    result = environment.run("python", "-m", "pytest", *options, where, OMP_WAIT_POLICY="PASSIVE")
    expect(result.returncode == 0 and "1 passed" in result.stdout, f"training or prediction: {result.stdout[-3000:]}")


def check_removed(environment: Environment, before: set[str]) -> None:
    """No file that was not there before, so nnU-Net finds what it found before."""
    result = environment.run("swinfuse_register", "--remove")
    expect(result.returncode == 0, f"--remove failed: {result.stderr}")
    expect(listing(environment) == before, f"site-packages differs by {listing(environment) ^ before}")
    expect(variable(environment) == "not set", "the variable is still set")


def check_uninstalled(environment: Environment, own: Path) -> None:
    """The line remains when the package is uninstalled without --remove; it must do nothing and print nothing."""
    code = "from nnunetv2_swinfuse.discovery.register import register; register()"
    expect(environment.run("python", "-c", code).returncode == 0, "registration failed")
    expect(variable(environment).endswith("external_trainers"), "registering again has no effect")
    environment.uninstall_package()
    left = sorted(path.name for path in environment.site.iterdir() if "swinfuse" in path.name)
    expect(left == [PTH_NAME], f"remaining files: {left}, expected only {PTH_NAME}")
    expect(variable(environment) == "not set", "the leftover line sets the variable")
    expect(variable(environment, **{VARIABLE: str(own)}) == str(own), "the leftover line changes the user's variable")
    answer = look_up(environment, STOCK, SWINFUSE, OWN, **{VARIABLE: str(own)})
    expect(answer["swinfuse"] is None and "nnunetv2-swinfuse" not in answer["versions"], f"still there: {answer}")
    expect(answer["found"][SWINFUSE] is None and answer["found"][OWN] == OWN_MODULE, f"found: {answer}")


def variable(environment: Environment, **variables: str) -> str:
    """What a new Python has in `nnUNet_extTrainer`; it must start without printing anything."""
    code = f"import os; print(os.environ.get('{VARIABLE}', 'not set'))"
    result = environment.run("python", "-W", "error", "-c", code, **variables)
    expect(result.returncode == 0 and not result.stderr, f"a Python start says: {result.stderr}")
    return result.stdout.strip()


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CheckError(otherwise)


def expect_words(text: str, *words: str) -> None:
    for word in words:
        expect(word in text, f"{word!r} is missing in:\n{text[-2000:]}")
