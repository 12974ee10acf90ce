"""nnU-Net's own predictor, filled from a model's folder without running anything that the folder brings along."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.model_description import read_json
from nnunetv2_swinfuse.inference.model_files import compare_with_manifest, find_folds
from nnunetv2_swinfuse.inference.plan_safety import check_plans
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, PLANS_FILE
from nnunetv2_swinfuse.plain_loading import inspect_checkpoint, load_plain

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class LoadedModel:
    """A predictor and where it comes from.

    Attributes:
        predictor: nnU-Net's, ready to predict.
        configuration: such as 3d_fullres.
        folds: such as `0` or `all`.
        hashes: SHA-256 of plans.json, dataset.json and the folds' checkpoints, by path below the folder.
    """

    predictor: nnUNetPredictor
    configuration: str
    folds: tuple[str, ...]
    hashes: dict[str, str]


def load_model(folder: Path, folds: Sequence[str] | None, checkpoint: str, predictor: nnUNetPredictor) -> LoadedModel:
    """Does what `initialize_from_trained_model_folder` does, with `weights_only=True` and names from a list only.

    Args:
        folder: the model's.
        folds: None for all that have the checkpoint.
        checkpoint: name of the file in each fold's folder.
        predictor: nnU-Net's predictor, constructed but not initialised.

    Raises:
        InputError: when something is missing, damaged, differs from the model's manifest, could run code, or does not
            belong together.
    """
    found = find_folds(folder, folds, checkpoint)
    names = [f"{fold}/{checkpoint}" for fold in found]
    hashes = compare_with_manifest(folder, [PLANS_FILE, DATASET_FILE, *names])
    plans, dataset_json = read_json(folder / PLANS_FILE), read_json(folder / DATASET_FILE)
    check_plans(plans, folder / PLANS_FILE)
    contents = []
    for name in names:
        with (folder / name).open("rb") as file:
            inspect_checkpoint(file, str(folder / name))
        contents.append(load_plain(folder / name))
    try:
        configuration, trainer = contents[0]["init_args"]["configuration"], contents[0]["trainer_name"]
        axes = contents[0].get("inference_allowed_mirroring_axes")
        weights = [content["network_weights"] for content in contents]
        if not isinstance(trainer, str) or not _IDENTIFIER.fullmatch(trainer):
            raise ValueError(f"trainer_name {trainer!r}")
        if axes is not None:
            axes = tuple(int(axis) for axis in axes)
        manager = PlansManager(plans)
        configured = manager.get_configuration(configuration)
        network = _build(trainer, manager, configured, dataset_json)
        network.load_state_dict(weights[0])
        predictor.manual_initialization(network, manager, configured, weights, dataset_json, trainer, axes)
    except Exception as error:
        # Plans and weights from outside can be wrong in any way; what nnU-Net says of it names neither file.
        reason = (str(error).splitlines() or ["no message"])[0]
        raise InputError(
            f"{folder}: plans.json, dataset.json and {names[0]} do not make a network together "
            f"({type(error).__name__}: {reason}); install the model again"
        ) from error
    return LoadedModel(predictor, configuration, tuple(fold.removeprefix("fold_") for fold in found), hashes)


def _build(trainer: str, manager: PlansManager, configured: Any, dataset_json: dict[str, Any]) -> torch.nn.Module:
    channels = determine_num_input_channels(manager, configured, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    # A class of this installation, never of the model: nnU-Net looks in itself and in nnUNet_extTrainer.
    found = recursive_find_trainer_class_by_name(trainer)
    if "plans_manager" in inspect.signature(found.build_network_architecture).parameters:
        described: tuple[Any, ...] = (manager, configured)
    else:
        # An earlier signature, which trainers of others may have and nnU-Net's predictor still calls.
        described = (
            configured.network_arch_class_name,
            configured.network_arch_init_kwargs,
            configured.network_arch_init_kwargs_req_import,
        )
    network: torch.nn.Module = found.build_network_architecture(
        *described, channels, heads, enable_deep_supervision=False
    )
    return network
