"""`swinfuse_verify`: whether a model, zipped or installed, is complete and safe to open, before anything opens it."""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

import torch
from tqdm import tqdm

from nnunetv2_swinfuse.errors import InputError, reading
from nnunetv2_swinfuse.inference.archives import ArchiveError, inspect_archive, member_hash, read_member
from nnunetv2_swinfuse.inference.findings import EXIT_UNUSABLE
from nnunetv2_swinfuse.inference.manifest import MANIFEST, Manifest, parse_manifest
from nnunetv2_swinfuse.inference.model_description import LARGEST_JSON
from nnunetv2_swinfuse.inference.model_files import compare_with_manifest, file_hash, read_manifest
from nnunetv2_swinfuse.inference.plan_safety import check_plans
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, FINGERPRINT_FILE, PLANS_FILE
from nnunetv2_swinfuse.plain_loading import inspect_checkpoint, load_plain

PROGRAM = "swinfuse_verify"
EXIT_REFUSED = 4
# What an exported model consists of. Files that others open by running code, such as postprocessing.pkl, are not in it.
ENDINGS = (".json", ".pth", ".md", ".txt", ".png", ".pdf")
NO_MANIFEST = (
    f"no {MANIFEST}, so nothing says what its files should be: not exported by swinfuse_export. Ask for such an "
    "export, or check the rest with --without_manifest"
)


@dataclass(frozen=True)
class Verified:
    """A model that passed.

    Attributes:
        model: its folder below nnUNet_results.
        manifest: its manifest, None where a missing one was accepted.
        files: how many files were looked at.
        sha256: of the zip, or of an installed model's manifest.
    """

    model: str
    manifest: Manifest | None
    files: int
    sha256: str


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point. Exits with 0 for a valid model, 4 for a refused one, 2 when there is none at that path."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("model", type=Path, help="a model zip, or the folder of an installed model")
    parser.add_argument("--sha256", metavar="HEX", help="refuse a zip with another SHA-256 than its publisher names")
    parser.add_argument(
        "--without_manifest",
        action="store_true",
        help="check what can be checked of a model that stock nnU-Net exported",
    )
    options = parser.parse_args(arguments)
    try:
        with reading(options.model):
            if not options.model.exists():
                print(f"{PROGRAM}: {options.model}: no such file or folder", file=sys.stderr)
                raise SystemExit(EXIT_UNUSABLE)
        verify = verify_folder if options.model.is_dir() else verify_zip
        result = verify(options.model, not options.without_manifest, options.sha256)
    except InputError as error:
        print(f"{PROGRAM}: REFUSED: {error}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from None
    print(f"{options.model}: sound; {result.files} files of {result.model}")
    print(f"SHA-256 {result.sha256}: compare it with the publisher's. A hash within a model does not prove its origin.")
    if result.manifest is not None:
        print("licences: " + "; ".join(f"{what}: {which}" for what, which in result.manifest.licences.items()))
    if not options.model.is_dir():
        print(f"install it with: nnUNetv2_install_pretrained_model_from_zip {options.model}")
    raise SystemExit(0)


def verify_zip(path: Path, need_manifest: bool = True, sha256: str | None = None) -> Verified:
    """Checks a model zip from the outside in: archive, hashes, JSON, pickles as data, and only then the weights.

    Raises:
        InputError: naming the first thing that is not as it must be.
    """
    digest = file_hash(path)
    if sha256 is not None and digest != sha256.lower():
        raise ArchiveError(f"{path}: SHA-256 {digest}, expected {sha256.lower()}; download it again")
    members = {member.filename: member for member in inspect_archive(path)}
    sizes = {name: member.file_size for name, member in members.items()}
    with zipfile.ZipFile(path) as archive:

        def read(name: str) -> bytes:
            return read_member(archive, members[name])

        manifest = _manifest(path, sizes, read, need_manifest)
        if manifest is not None:
            _check_hashes(path, manifest, archive, members)
        # Reading backwards through a compressed part is quadratic; weights are read once into memory.
        model = _check_contents(path, sizes, read, lambda name: io.BytesIO(read(name)), manifest is not None)
    return Verified(model, manifest, len(members), digest)


def verify_folder(folder: Path, need_manifest: bool = True, sha256: str | None = None) -> Verified:
    """The same for an installed model. Files that inference and training add to it are accepted, except checkpoints.

    Raises:
        InputError: naming the first thing that is not as it must be.
    """
    if sha256 is not None:
        raise InputError(f"{folder}: --sha256 is for zips")
    manifest = read_manifest(folder)
    # A fold's folder may be a link, which rglob does not follow but nnU-Net does.
    checkpoints = {path for path in (*folder.rglob("*.pth"), *folder.glob("fold_*/*.pth")) if path.is_file()}
    if manifest is None:
        if need_manifest:
            raise InputError(f"{folder}: {NO_MANIFEST}")
        others = [path for path in folder.rglob("*") if path.suffix == ".json" or path.is_symlink()]
        names = {path.relative_to(folder).as_posix() for path in (*checkpoints, *others) if path.is_file()}
        digest = "(none: no manifest)"
    else:
        names = {*manifest.files, *(path.relative_to(folder).as_posix() for path in checkpoints)}
        compare_with_manifest(folder, sorted(names), progress=True)
        names.add(MANIFEST)
        digest = file_hash(folder / MANIFEST)
    model = "/".join(folder.resolve().parts[-2:])
    files = {f"{model}/{name}": folder / name for name in names}
    with reading(folder):
        sizes = {name: path.stat().st_size for name, path in files.items()}
        _check_contents(
            folder, sizes, lambda name: files[name].read_bytes(), lambda name: files[name].open("rb"),
            manifest is not None, model,
        )  # fmt: skip
    return Verified(model, manifest, len(files), digest)


def _check_contents(
    where: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], bytes],
    opened: Callable[[str], IO[bytes]],
    strict: bool,
    model: str | None = None,
) -> str:
    names = sorted(sizes)
    models = {model} if model else {"/".join(name.split("/")[:2]) for name in names if name.count("/") >= 2}
    for name in names:
        _check_name(where, name, models, strict)
        if name.endswith(".json"):
            content = _json(where, name, sizes[name], read)
            if PurePosixPath(name).name == PLANS_FILE:
                check_plans(content, f"{where}: {name}")
    for name in (name for name in names if name.endswith(".pth")):
        with opened(name) as file:
            inspect_checkpoint(file, f"{where}: {name}")
            file.seek(0)
            _check_weights(file, f"{where}: {name}")
    for folder in sorted(models):
        for needed in (PLANS_FILE, DATASET_FILE, FINGERPRINT_FILE):
            if f"{folder}/{needed}" not in sizes:
                raise InputError(f"{where}: {folder}/{needed} is missing; export the model again")
        if not any(name.startswith(f"{folder}/fold_") and name.endswith(".pth") for name in names):
            raise InputError(f"{where}: no checkpoint in {folder}; export the model again")
    if not models:
        raise InputError(f"{where}: no model of nnU-Net inside, expected DATASET/TRAINER__PLANS__CONFIGURATION/...")
    return sorted(models)[0]


def _manifest(path: Path, sizes: Mapping[str, int], read: Callable[[str], bytes], needed: bool) -> Manifest | None:
    found = [name for name in sizes if PurePosixPath(name).name == MANIFEST]
    if len(found) > 1:
        raise InputError(f"{path}: {len(found)} manifests, expected one")
    if not found:
        if needed:
            raise InputError(f"{path}: {NO_MANIFEST}")
        return None
    if sizes[found[0]] > LARGEST_JSON:
        raise InputError(f"{path}: a manifest of {sizes[found[0]]} bytes")
    return parse_manifest(read(found[0]), f"{path}: {found[0]}")


def _check_hashes(
    path: Path, manifest: Manifest, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> None:
    expected = {f"{manifest.model}/{name}": entry for name, entry in manifest.files.items()}
    present = sorted(set(members) - {f"{manifest.model}/{MANIFEST}"})
    surplus, missing = sorted(set(present) - set(expected)), sorted(set(expected) - set(present))
    if surplus or missing:
        raise InputError(
            f"{path}: not what its manifest lists: surplus {surplus[:5]}, missing {missing[:5]}; download it again"
        )
    for name in tqdm(present, "checking hashes", disable=len(present) < 2):
        digest, size = member_hash(archive, members[name]), members[name].file_size
        if digest != expected[name]["sha256"] or size != expected[name]["bytes"]:
            raise InputError(
                f"{path}: {name} has the SHA-256 {digest} and {size} bytes, its manifest says "
                f"{expected[name]['sha256']} and {expected[name]['bytes']}: changed or damaged; download it again"
            )


def _check_name(where: Path, name: str, models: set[str], strict: bool) -> None:
    if strict and len(models) != 1:
        raise InputError(f"{where}: files of {len(models)} models, expected one: {', '.join(sorted(models)[:5])}")
    parts = name.split("/")
    if strict and (len(parts) < 3 or not parts[0].startswith("Dataset") or parts[1].count("__") != 2):
        raise InputError(f"{where}: {name} lies outside DATASET/TRAINER__PLANS__CONFIGURATION")
    if not name.endswith(ENDINGS):
        raise InputError(
            f"{where}: {name} is no file of an exported model ({', '.join(ENDINGS)}); such a file may run code when it "
            "is opened"
        )


def _json(where: Path, name: str, size: int, read: Callable[[str], bytes]) -> Any:
    try:
        if size > LARGEST_JSON:
            raise ValueError(f"{size} bytes")
        return json.loads(read(name))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {name} is damaged or no JSON ({type(error).__name__}: {error})") from error


def _check_weights(file: IO[bytes], name: str) -> None:
    content = load_plain(file, name)
    try:
        weights, trainer = content["network_weights"], content["trainer_name"]
        if not isinstance(trainer, str) or not isinstance(content["init_args"]["configuration"], str):
            raise TypeError("trainer_name or configuration is no text")
        broken = [key for key, tensor in weights.items() if not torch.isfinite(tensor).all()]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: no checkpoint of nnU-Net ({type(error).__name__}: {error})") from error
    if broken:
        raise InputError(f"{name}: {len(broken)} of its tensors hold NaN or infinity, such as {broken[0]}")


if __name__ == "__main__":
    main()
