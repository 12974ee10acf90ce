"""Command lines of `swinfuse_pretrain` in the folders that `conftest.py` makes, and what they leave."""

import pytest

from pretraining.cli import main

from .synthetic import tiny_arguments


def set_paths(monkeypatch, root):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))


def command(*more, **changes):
    return ["-d", "SynthRAD", "-p", "tiny", "-np", "1", *tiny_arguments(**{"steps": 2, **changes}), *more]


def fails(capsys, *arguments, status=2):
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == status
    return capsys.readouterr().err


def run_folder(root):
    return root / "results" / "SynthRAD" / "swinfuse__tiny"


def volumes_folder(root):
    return root / "preprocessed" / "SynthRAD" / "swinfuse"


def contents(root):
    """All files but locks, with the times at which they were written."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}
