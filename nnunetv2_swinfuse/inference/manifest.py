"""The manifest of an exported model: SHA-256 of every file, versions, licences; beside plans.json in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_swinfuse.errors import InputError

MANIFEST = "swinfuse_manifest.json"
FORMAT, FORMAT_VERSION = "swinfuse-model", 1
LARGEST = 16 * 1024**2
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What an exported model says of itself.

    Attributes:
        model: `DATASET/TRAINER__PLANS__CONFIGURATION`, its folder below nnUNet_results.
        files: SHA-256 and size of every other file, by its path below `model`.
        versions: of the packages that exported it.
        licences: of `code`, `weights` and `data`, in the exporter's words.
        training: dataset, folds, trainer, network and encoder; of a cascade's second stage also the first.
    """

    model: str
    files: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    licences: Mapping[str, str]
    training: Mapping[str, Any]

    def to_json(self) -> str:
        """The file's content; the same model gives the same text."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "versions": dict(self.versions),
            "licences": dict(self.licences),
            "training": dict(self.training),
            "files": {name: dict(entry) for name, entry in sorted(self.files.items())},
        }
        return json.dumps(content, indent=2) + "\n"


def parse_manifest(text: bytes, where: object) -> Manifest:
    """The manifest in a file.

    Args:
        text: its content.
        where: its path, for messages.

    Raises:
        InputError: when it is damaged, incomplete, of another kind or of a newer format.
    """
    try:
        if len(text) > LARGEST:
            raise ValueError(f"{len(text)} bytes")
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT!r}")
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {content['format_version']}, this installation reads {FORMAT_VERSION}")
        files = content["files"]
        for name, entry in files.items():
            if not _HASH.fullmatch(entry["sha256"]) or not isinstance(entry["bytes"], int):
                raise ValueError(f"entry of {name!r}")
        if content["model"].count("/") != 1:
            raise ValueError(f"model {content['model']!r}")
        return Manifest(
            content["model"], files, dict(content["versions"]), dict(content["licences"]), dict(content["training"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{where}: damaged, or of another version ({type(error).__name__}: {error}). Download the model again, or "
            "install a newer version of nnunetv2-swinfuse"
        ) from error
