"""Which nnunetv2 this package was tested with, and which version of this package made a model."""

from __future__ import annotations

import re
from importlib.metadata import version

from nnunetv2_swinfuse.errors import SwinFUSEError

PACKAGE = "nnunetv2-swinfuse"
# pyproject.toml states the same range: from the first, below the second. `python -m tests.installation` tests its ends.
NNUNET_FROM, NNUNET_BELOW = "2.8.0", "2.9"


class VersionError(SwinFUSEError, RuntimeError):
    """A model of a newer version of this package; the message says how to upgrade."""


def release(text: str) -> tuple[int, ...]:
    """The numbers of a version, such as (2, 8, 1); what follows them (`rc1`, `+local`) does not count."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in match.group().split(".")) if match else ()


def nnunet_warning(installed: str | None = None) -> str | None:
    """What to say of an nnunetv2 outside the tested range; None inside it.

    Args:
        installed: its version; that of this environment by default.
    """
    installed = installed or version("nnunetv2")
    numbers = release(installed)
    if release(NNUNET_FROM) <= numbers < release(NNUNET_BELOW):
        return None
    if numbers < release(NNUNET_FROM):
        risk = "It has no nnUNet_extTrainer: nnUNetv2_train and swinfuse_train do not find the trainers"
    else:
        risk = "The trainer's constructor, its checkpoints and the plans' architecture block may have changed"
    return (
        f"nnunetv2 {installed} is installed; this version of {PACKAGE} was tested with {NNUNET_FROM} and newer, below "
        f'{NNUNET_BELOW}. {risk}. To be safe: pip install "nnunetv2>={NNUNET_FROM},<{NNUNET_BELOW}"'
    )


def check_plugin_version(recorded: str | None, where: object, installed: str | None = None) -> None:
    """Refuses a model that a newer version of this package made: what that version added would be lost.

    Args:
        recorded: the version in the model's plans.json; None for a model that names none.
        where: that file, for the message.
        installed: the version of this package; that of this environment by default.

    Raises:
        VersionError: when the model's is newer.
    """
    installed = installed or version(PACKAGE)
    if recorded is not None and release(recorded) > release(installed):
        raise VersionError(
            f"{where}: made with {PACKAGE} {recorded}, installed is {installed}, which may not know its network or its "
            f'settings. Upgrade: pip install --upgrade "{PACKAGE}>={recorded}"'
        )
