from pathlib import Path

import pytest

from nnunetv2_swinfuse.compatibility import (
    NNUNET_BELOW,
    NNUNET_FROM,
    VersionError,
    check_plugin_version,
    nnunet_warning,
    release,
)


def test_the_range_is_that_of_the_package():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"nnunetv2>={NNUNET_FROM},<{NNUNET_BELOW}"' in project


@pytest.mark.parametrize(
    ("installed", "message"),
    [("2.8.0", None), ("2.8.12", None), ("2.7.0", "nnUNet_extTrainer"), ("2.9.0", "constructor"), ("3", "constructor")],
)
def test_an_nnunet_outside_the_range_is_warned_of(installed, message):
    warning = nnunet_warning(installed)
    assert (warning is None) == (message is None)
    if message:
        assert installed in warning
        assert message in warning
        assert f"nnunetv2>={NNUNET_FROM},<{NNUNET_BELOW}" in warning


def test_what_follows_the_numbers_does_not_count():
    assert release("2.8.1.post1+cpu") == release("2.8.1rc2") == (2, 8, 1)
    assert release("unknown") == ()


def test_a_model_of_a_newer_version_is_refused():
    for recorded in (None, "0.1.0", "0.0.9"):
        check_plugin_version(recorded, "plans.json", "0.1.0")
    with pytest.raises(VersionError, match=r"plans.json: made with nnunetv2-swinfuse 0.10.0, installed is 0.9.1.*pip"):
        check_plugin_version("0.10.0", "plans.json", "0.9.1")
