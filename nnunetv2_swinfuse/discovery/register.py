"""`swinfuse_register`: nnU-Net finds the trainers in every process of this Python environment.

nnU-Net 2.8 looks for trainers in the folders that the variable `nnUNet_extTrainer` names. A `.pth` file in
site-packages adds this package's folder to it whenever Python starts; that line does nothing once the package is gone,
and nothing is written into nnunetv2.
"""

from __future__ import annotations

import argparse
import os
import site as python_site
import sysconfig
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from nnunetv2_swinfuse.compatibility import PACKAGE
from nnunetv2_swinfuse.discovery.diagnosis import check
from nnunetv2_swinfuse.errors import SwinFUSEError, errors_without_traceback
from nnunetv2_swinfuse.nnunet_names import EXTERNAL_TRAINERS

# Sorts after the `__editable__*.pth` of editable installs, which must have made the package findable before.
PTH_NAME = "nnunetv2_swinfuse_trainers.pth"

# Python runs a line of a .pth file that begins with "import", at every start: it must neither raise nor name anything
# that `site`, in whose function it runs, has a name for.
PTH_LINE = (
    "import os, importlib.util; "
    "swinfuse = importlib.util.find_spec('nnunetv2_swinfuse'); "
    "swinfuse_folder = os.path.join(os.path.dirname(swinfuse.origin), 'discovery', 'external_trainers') "
    "if swinfuse and swinfuse.origin else ''; "
    f"swinfuse_paths = [path for path in os.environ.get('{EXTERNAL_TRAINERS}', '').split(os.pathsep) if path]; "
    f"os.environ.update({{'{EXTERNAL_TRAINERS}': os.pathsep.join(swinfuse_paths + [swinfuse_folder])}} "
    "if os.path.isdir(swinfuse_folder) and swinfuse_folder not in swinfuse_paths else {})\n"
)


class RegistrationError(SwinFUSEError, RuntimeError):
    """The registration could not be written or removed; the message says where and what to do."""


def external_trainers_folder() -> Path:
    """The folder for `nnUNet_extTrainer`; it holds one module that names the trainers."""
    return Path(__file__).resolve().parent / "external_trainers"


def site_packages() -> Path:
    """Where this Python keeps pure packages and their `.pth` files; the user's own folder if this package is there."""
    try:
        installed = Path(str(distribution(PACKAGE).locate_file("")))
    except PackageNotFoundError:
        installed = None
    user = Path(python_site.getusersitepackages())
    return user if installed == user else Path(sysconfig.get_path("purelib"))


def register(site: Path | None = None) -> Path:
    """Writes the `.pth` file; doing it twice changes nothing.

    Args:
        site: another folder than this environment's site-packages.

    Raises:
        RegistrationError: when the folder cannot be written.
    """
    path = (site or site_packages()) / PTH_NAME
    try:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(PTH_LINE)
        os.replace(temporary, path)
    except OSError as error:
        raise RegistrationError(
            f"{path} cannot be written ({error}). Use a virtual environment of your own, or set the variable instead:\n"
            f"    export {EXTERNAL_TRAINERS}={external_trainers_folder()}"
        ) from error
    return path


def remove(site: Path | None = None) -> bool:
    """Deletes the `.pth` file; says whether there was one.

    Raises:
        RegistrationError: when it cannot be deleted.
    """
    path = (site or site_packages()) / PTH_NAME
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RegistrationError(f"{path} cannot be deleted ({error}); delete it by hand") from error
    return True


def visible_to_nnunet() -> bool:
    """Whether a new nnU-Net process would be given this package's trainers (by its environment, without asking it)."""
    folder = external_trainers_folder()
    named = [Path(path).resolve() for path in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if path]
    return folder in named or (site_packages() / PTH_NAME).is_file()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 1 when nnU-Net does not find the trainers, with 2 when the file cannot be written."""
    parser = argparse.ArgumentParser(
        prog="swinfuse_register",
        description="Make the SwinFUSE trainers known to nnU-Net in this Python environment, permanently.",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="say what nnU-Net sees and what to do, change nothing")
    action.add_argument("--remove", action="store_true", help="take the registration back; trained models keep working")
    parser.add_argument("--site", type=Path, metavar="FOLDER", help="another folder than this Python's site-packages")
    options = parser.parse_args(arguments)
    with errors_without_traceback("swinfuse_register"):
        path = (options.site or site_packages()) / PTH_NAME
        if options.check:
            raise SystemExit(0 if check(path, PTH_LINE, external_trainers_folder(), options.site) else 1)
        if options.remove:
            print("Removed." if remove(options.site) else "There was nothing to remove.")
            return
        print(f"Registered: {register(options.site)}")
        raise SystemExit(0 if check(path, PTH_LINE, external_trainers_folder(), options.site) else 1)
