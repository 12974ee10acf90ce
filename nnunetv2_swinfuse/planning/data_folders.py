"""Which folder of preprocessed data a configuration uses: another plan's where preprocessing is the same."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swinfuse.architecture.atomic_write import is_temporary
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, STOCK_PLANS
from nnunetv2_swinfuse.training.processing import preprocessing_of

# Configurations that nnU-Net's default planner preprocesses the same for every network; 3d_lowres depends on the patch.
STOCK_CONFIGURATIONS = ("2d", "3d_fullres")


def share_data_folders(plans: dict[str, Any], folder: Path, as_stock: bool) -> None:
    """Sets every configuration's `data_identifier`, in place.

    A folder is shared when all plans in `folder` that use it preprocess exactly as these plans do. Where no plans name
    it yet, `2d` and `3d_fullres` take nnU-Net's own, so that `nnUNetPlans` planned later share it in turn.

    Args:
        plans: the new plans, plain values only.
        folder: the dataset's folder in nnUNet_preprocessed.
        as_stock: whether these plans preprocess as nnU-Net's default planner would.
    """
    users: dict[str, list[dict[str, Any]]] = {}
    for identifier, user in _preprocessing_by_folder(folder, plans["plans_name"]):
        users.setdefault(identifier, []).append(user)
    # The stock folder first: it is the one that a comparison needs.
    identifiers = sorted(users, key=lambda name: (not name.startswith(f"{STOCK_PLANS}_"), name))
    for name, block in plans["configurations"].items():
        if "data_identifier" not in block:
            continue
        preprocessing = preprocessing_of(plans, block)
        shared = [known for known in identifiers if all(user == preprocessing for user in users[known])]
        stock = f"{STOCK_PLANS}_{name}"
        if shared:
            block["data_identifier"] = shared[0]
        elif as_stock and name in STOCK_CONFIGURATIONS and stock not in users:
            block["data_identifier"] = stock
        else:
            block["data_identifier"] = f"{plans['plans_name']}_{name}"


def _preprocessing_by_folder(folder: Path, own_name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Data identifiers that other plans of the dataset use, and how those preprocess."""
    for path in sorted(folder.glob("*.json")):
        # A killed process may have left its temporary file.
        if path.stem == own_name or is_temporary(path):
            continue
        try:
            other = json.loads(path.read_text())
            if not isinstance(other, dict) or not isinstance(other.get("configurations"), dict):
                continue
            manager = PlansManager(other)
            blocks = [manager.get_configuration(name).configuration for name in other["configurations"]]
        except (OSError, ValueError, KeyError) as error:
            print(f"{path}: not looked at for shared data folders, nnU-Net could not use these plans ({error})")
            continue
        for block in blocks:
            if "data_identifier" in block:
                yield block["data_identifier"], preprocessing_of(other, block)


def newest_change(raw: Path, cases: Mapping[str, Any]) -> float:
    """When the last file changed that fingerprint and preprocessed data are made from, seconds since the epoch.

    `dataset.json` names the reader, channels and labels, so it is one of them.

    Args:
        raw: the dataset's folder in nnUNet_raw.
        cases: paths of `images` and `label` by case, as nnU-Net lists them.
    """
    files = [path for case in cases.values() for path in (*case["images"], case["label"])]
    return max(Path(path).stat().st_mtime for path in (raw / DATASET_FILE, *files))


def is_preprocessed(
    plans: Mapping[str, Any], configuration: str, folder: Path, raw: Path, cases: Mapping[str, Any]
) -> bool:
    """Whether a shared data folder holds every case at these plans' spacing, newer than `dataset.json` and raw files.

    A folder of the plans' own does not say how it was preprocessed: False.

    Args:
        plans: nnU-Net's plans.
        configuration: name of a configuration in them.
        folder: the dataset's folder in nnUNet_preprocessed.
        raw: the dataset's folder in nnUNet_raw.
        cases: paths of `images` and `label` by case, as nnU-Net lists them.
    """
    block = PlansManager(dict(plans)).get_configuration(configuration).configuration
    if block["data_identifier"].startswith(f"{plans['plans_name']}_"):
        return False
    data = folder / block["data_identifier"]
    return data.is_dir() and all(
        _is_complete(data / name, newest_change(raw, {name: files}), block["spacing"], plans["transpose_forward"])
        for name, files in cases.items()
    )


def _is_complete(stem: Path, changed: float, spacing: Sequence[float], transpose: Sequence[int]) -> bool:
    # nnU-Net writes the properties last.
    properties_file = stem.with_name(f"{stem.name}.pkl")
    voxels, labels = (stem.with_name(f"{stem.name}{ending}.b2nd") for ending in ("", "_seg"))
    if not (properties_file.is_file() and voxels.is_file() and labels.is_file()):
        return False
    if changed > properties_file.stat().st_mtime:
        return False
    try:
        properties = pickle.loads(properties_file.read_bytes())
        shapes = [tuple(blosc2.open(str(path), mode="r").shape[1:]) for path in (voxels, labels)]
        cropped = properties["shape_after_cropping_and_before_resampling"]
        original = [properties["spacing"][axis] for axis in transpose]
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError):
        return False
    # In 2d the first axis keeps its spacing.
    target = [*original[: 3 - len(spacing)], *spacing]
    return shapes[0] == shapes[1] == tuple(compute_new_shape(cropped, original, target))
