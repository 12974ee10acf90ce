"""How long the cells that are not done will take: measured on finished cells, else estimated from operations.

An estimate is the number of floating point operations of a cell's training steps, divided by what this machine reaches
in them: the rate of the finished cells of other kinds, or, before the first cell, that of a 3D convolution. Loading,
augmentation and the prediction of the test cases are left out. Expect a factor of three either way
(docs/benchmark.md has measured ones).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.architecture.registry import build_network, planned_backbone, plans_architecture
from nnunetv2_swinfuse.benchmark.arms import SWINFUSE, Arm
from nnunetv2_swinfuse.benchmark.cell_run import change_plans
from nnunetv2_swinfuse.benchmark.cells import Cell, Workspace, measured_seconds
from nnunetv2_swinfuse.benchmark.encoder_records import ENCODER, PUBLISHED_ENCODER, pretraining_seconds
from nnunetv2_swinfuse.benchmark.experiment import Experiment, Length, PretrainingRun
from nnunetv2_swinfuse.benchmark.raw_dataset import Dataset
from nnunetv2_swinfuse.benchmark.swin_unetr import MULTIPLE, PaddedSwinUNETR
from nnunetv2_swinfuse.errors import BenchmarkError, InputError

if TYPE_CHECKING:
    from pretraining.configuration import Configuration

Kind = tuple[str, str]
SWIN_UNETR = "nnUNetTrainerSwinUNETR"
# A backward pass costs twice its forward pass; validation iterations have none.
TRAINING, VALIDATION = 3, 1


class UnknownCostError(BenchmarkError):
    """What a kind of cell costs cannot be told yet; the message says why, and what to do."""


@dataclass(frozen=True)
class Forecast:
    """The cells that are not done, and how long they will take.

    Attributes:
        waiting: their number, by kind (arm, dataset).
        measured: seconds of a cell, by kind, from finished cells.
        estimated: the same from operations, of kinds that were never measured.
        unknown: kinds whose cost cannot be told, and why.
        pretraining: seconds of each pretraining that is not done, by its name; None where that cannot be told.
    """

    waiting: Mapping[Kind, int]
    measured: Mapping[Kind, float]
    estimated: Mapping[Kind, float]
    unknown: Mapping[Kind, str]
    pretraining: Mapping[str, float | None]

    @property
    def seconds(self) -> float:
        """Time of all cells whose cost is known, one after another."""
        cells = {**self.estimated, **self.measured}
        known = sum(count * cells[kind] for kind, count in self.waiting.items() if kind in cells)
        return known + sum(seconds or 0.0 for seconds in self.pretraining.values())


def forecast(
    experiment: Experiment,
    workspace: Workspace,
    datasets: Mapping[str, Dataset],
    cells: Sequence[Cell],
    results: Mapping[str, Mapping[str, Any]],
) -> Forecast:
    """Looks at plans, encoders and finished cells; trains nothing.

    Args:
        experiment, workspace, cells: what and where.
        datasets: by name.
        results: what is known of finished cells, by name.
    """
    waiting: dict[Kind, int] = {}
    for cell in cells:
        if cell.name not in results:
            waiting[cell.kind] = waiting.get(cell.kind, 0) + 1
    measured = measured_seconds(cells, results)
    estimated: dict[Kind, float] = {}
    unknown: dict[Kind, str] = {}
    for kind in waiting.keys() - measured.keys():
        arm, dataset = experiment.arm(kind[0]), datasets[kind[1]]
        try:
            operations = arm_operations(experiment, workspace, arm, dataset)
            estimated[kind] = operations / _rate(experiment.device, _rates(cells, results))
        except UnknownCostError as error:
            unknown[kind] = str(error)
    pretraining: dict[str, float | None] = {}
    # Pretrainings that differ in their seed take the same time.
    alike: dict[str, float | None] = {}
    for run in experiment.pretraining_runs:
        if waiting and not (workspace.pretraining(run) / ENCODER).is_file():
            any_seed = replace(run, seed=None).name
            if any_seed not in alike:
                alike[any_seed] = _pretraining_seconds(experiment, workspace, run)
            pretraining[run.name] = alike[any_seed]
    return Forecast(waiting, measured, estimated, unknown, pretraining)


def training_operations(flops_per_patch: float, batch_size: int, length: Length) -> float:
    """Floating point operations of all training and validation iterations of a cell.

    Args:
        flops_per_patch: of one forward pass.
        batch_size: patches of an iteration.
        length: of the training.
    """
    passes = TRAINING * length.iterations + VALIDATION * length.validation_iterations
    return flops_per_patch * batch_size * passes * length.epochs


def arm_operations(experiment: Experiment, workspace: Workspace, arm: Arm, dataset: Dataset) -> float:
    """Floating point operations of a training of an arm on a dataset.

    Raises:
        UnknownCostError: when the dataset is not planned, or the network is not known.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    path = workspace.preprocessed / dataset.name / f"{arm.plans_name}.json"
    if not path.is_file():
        raise UnknownCostError("not planned yet: --prepare_only")
    content = json.loads(path.read_text())
    plans = change_plans(content, experiment.configuration, experiment.plans_changes(arm), str(path))
    manager = PlansManager(plans)
    configuration = manager.get_configuration(experiment.configuration)
    channels = determine_num_input_channels(manager, configuration, dataset.content)
    heads = manager.get_label_manager(dataset.content).num_segmentation_heads
    patch = tuple(int(size) for size in configuration.patch_size)
    if arm.trainer == SWIN_UNETR:
        flops = _swin_unetr_operations(channels, heads) * math.prod(-(-size // MULTIPLE) * MULTIPLE for size in patch)
    else:
        with torch.device("meta"):
            if arm.trainer.startswith(SWINFUSE):
                block = configuration.configuration["architecture"]
                network = _swinfuse_network(experiment, workspace, arm, block, configuration.spacing, channels, heads)
            elif arm.trainer == "nnUNetTrainer":
                network = _stock_network(configuration, channels, heads)
            else:
                raise UnknownCostError(f"the network of {arm.trainer} is not known before its first cell has run")
        flops = count_operations(network, (1, channels, *patch), "meta")
    return training_operations(flops, configuration.batch_size, experiment.length)


def count_operations(network: nn.Module, shape: Sequence[int], device: str) -> float:
    """Operations of a forward pass of an input of this shape (B, C, z, y, x); on `meta` nothing is computed."""
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(*shape, device=device))
    return float(counter.get_total_flops())


def _stock_network(configuration: Any, channels: int, heads: int) -> nn.Module:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    return get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        channels,
        heads,
        allow_init=False,
        deep_supervision=False,
    )


def _swinfuse_network(
    experiment: Experiment,
    workspace: Workspace,
    arm: Arm,
    planned: Mapping[str, Any],
    spacing: Sequence[float],
    channels: int,
    heads: int,
) -> nn.Module:
    if planned_backbone(planned) is None:
        kwargs = planned["arch_kwargs"]
        sizes = _encoder_sizes(experiment, workspace, arm)
        kernels = kwargs.get("kernel_sizes")
        planned = plans_architecture(kwargs["strides"], sizes, kernel_sizes=kernels, spacing=spacing)
    return build_network(planned, channels, heads)


def _encoder_sizes(experiment: Experiment, workspace: Workspace, arm: Arm) -> EncoderSettings:
    """The sizes of the arm's encoder, or those that it will have."""
    # The encoders of all seeds have the same sizes.
    run = experiment.pretraining_run(arm, experiment.seeds[0])
    file = Path(arm.encoder) if run is None else workspace.pretraining(run) / PUBLISHED_ENCODER
    if file.is_file():
        with torch.device("cpu"):
            return load_pretrained(file).settings
    return EncoderSettings() if run is None else _configuration(experiment, workspace, run).encoder_settings


def _configuration(experiment: Experiment, workspace: Workspace, run: PretrainingRun) -> Configuration:
    """The configuration of a pretraining that is not done, as `swinfuse_pretrain` would make it.

    Raises:
        UnknownCostError: where it depends on plans that are not there.
    """
    from pretraining.configuration import Configuration
    from pretraining.plan_sizes import fitted_sizes, read_plan
    from pretraining.preset_files import load_preset

    assert experiment.pretraining is not None
    settings = dict(run.settings)
    made_for = settings.pop("for", ())
    values = load_preset(experiment.pretraining.preset, run.recipe)
    try:
        plans = [read_plan(workspace.preprocessed, str(dataset)) for dataset in made_for]
        if set(settings) - {entry.name for entry in fields(Configuration)}:
            raise InputError(f"options that are no settings: {', '.join(settings)}")
        if plans:
            values |= fitted_sizes(plans, Configuration.from_dict(values), "spacing" not in settings)
    except InputError as error:
        raise UnknownCostError("the encoder's sizes are not known before it is pretrained: --prepare_only") from error
    values |= settings
    return Configuration.from_dict({**values, "steps": experiment.pretraining.steps or values["steps"]})


@lru_cache
def _swin_unetr_operations(channels: int, heads: int) -> float:
    """Operations for each voxel of a padded patch: attention in windows makes them proportional to the voxels."""
    size = 2 * MULTIPLE
    # MONAI's network asks for values of tensors, which the meta device does not have.
    return count_operations(PaddedSwinUNETR(channels, heads), (1, channels, size, size, size), "cpu") / size**3


def _rates(cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Operations per second of the finished cells, with everything that a cell spends time on."""
    rates = []
    for cell in cells:
        if cell.name in results:
            result = results[cell.name]
            cost, length = result["cost"], Length(**result["length"])
            operations = training_operations(cost["flops_per_patch"], cost["batch_size"], length)
            rates.append(operations / result["seconds"])
    return rates


def _rate(device: str, rates: Sequence[float]) -> float:
    if rates:
        return statistics.median(rates)
    if device == "cuda" and not torch.cuda.is_available():
        raise UnknownCostError("no GPU here whose speed could be measured: --list on the machine that will train")
    return _measured_rate(device)


@lru_cache
def _measured_rate(device: str) -> float:
    """Operations per second of training steps before anything was trained; measured once, equal for all arms."""
    from pretraining.run_time import EFFICIENCY, device_speed

    return device_speed(torch.device(device)) * EFFICIENCY


def _pretraining_seconds(experiment: Experiment, workspace: Workspace, run: PretrainingRun) -> float | None:
    from pretraining.run_time import step_operations

    assert experiment.pretraining is not None
    known = pretraining_seconds(experiment, workspace, run)
    if known is not None:
        return known
    if experiment.device == "cuda" and not torch.cuda.is_available():
        return None
    try:
        configuration = _configuration(experiment, workspace, run)
    except UnknownCostError:
        return None
    return step_operations(configuration) * configuration.steps / _measured_rate(experiment.device)
