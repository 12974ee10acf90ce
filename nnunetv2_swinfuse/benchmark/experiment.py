"""An experiment as data: datasets, arms, labelled cases, seeds, folds or a test split, length, device."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from nnunetv2_swinfuse.benchmark.arms import SWINFUSE, Arm, resolve_arm, takes_weights
from nnunetv2_swinfuse.errors import BenchmarkError

Device = Literal["cpu", "cuda"]
Orientation = Literal["as_stored", "RAS"]
AS_STORED: Orientation = "as_stored"
Labels = int | Literal["all"]
PLANS_CHANGES = ("patch_size", "batch_size", "features_per_stage")
Block = TypeVar("Block")


def _refuse_unknown(name: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise BenchmarkError(f"{name} has no field {', '.join(unknown)}; there are {', '.join(known)}")


def _require_count(name: str, value: object, expected: str = "; expected a whole number above 0") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BenchmarkError(f"{name} is {value!r}{expected}")


@dataclass(frozen=True)
class Length:
    """The length of a training, the same for all arms; the defaults are nnU-Net's."""

    epochs: int = 1000
    iterations: int = 250
    validation_iterations: int = 50

    def __post_init__(self) -> None:
        for entry in fields(self):
            _require_count(f"length.{entry.name}", getattr(self, entry.name))


@dataclass(frozen=True)
class Pretraining:
    """What all arms' encoders are pretrained on, and for how long.

    Attributes:
        collections: as `swinfuse_pretrain -d` takes them.
        preset: of `swinfuse_pretrain`.
        steps: the budget in steps; or
        minutes: the budget in minutes of training steps on this machine: 20 steps are timed first for each recipe.
        settings: further options of `swinfuse_pretrain`, such as `{"learning_rate": 2e-3}`.
        per_seed: whether every seed of the experiment pretrains an encoder of its own, with this seed; else all runs
            of an arm begin with the same encoder.
    """

    collections: tuple[str, ...]
    preset: str = "tiny"
    steps: int | None = None
    minutes: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    per_seed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "collections", tuple(map(str, self.collections)))
        if not self.collections:
            raise BenchmarkError("pretraining.collections is empty; name what swinfuse_pretrain -d would get")
        if (self.steps is None) == (self.minutes is None):
            raise BenchmarkError("pretraining: give its budget as 'steps' or as 'minutes', one of the two")
        if self.steps is not None:
            _require_count("pretraining.steps", self.steps)
        if self.minutes is not None and not self.minutes > 0:
            raise BenchmarkError(f"pretraining.minutes is {self.minutes}; expected more than 0")


@dataclass(frozen=True)
class NoLoss:
    """Claims that an arm loses less than a margin against another; each is tested for all numbers of labels.

    Attributes:
        margin: the loss to be ruled out, in Dice, such as 0.02.
        pairs: (first arm, second arm, number of the dataset).
    """

    margin: float
    pairs: tuple[tuple[str, str, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple((first, second, dataset) for first, second, dataset in self.pairs))
        if not 0 < self.margin < 1:
            raise BenchmarkError(f"no_loss.margin is {self.margin}; expected a Dice above 0 and below 1, such as 0.02")


@dataclass(frozen=True)
class PretrainingRun:
    """One encoder that an experiment pretrains.

    Attributes:
        recipe: of `swinfuse_pretrain`.
        settings: options of `swinfuse_pretrain`, the experiment's and the arm's.
        own: those of the arm only, which tell it from others with the same recipe.
        seed: of the pretraining; None leaves it to `swinfuse_pretrain`.
    """

    recipe: str
    settings: Mapping[str, Any]
    own: Mapping[str, Any]
    seed: int | None

    @property
    def name(self) -> str:
        """The folder's name."""
        words = [f"{name} {value}" for name, value in sorted(self.own.items())]
        words += [] if self.seed is None else [f"seed {self.seed}"]
        return "__".join([self.recipe, *(re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_") for word in words)])


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the results of a comparison.

    Attributes:
        name: of the folder and the report.
        datasets: numbers of nnU-Net datasets in nnUNet_raw.
        arms: what is compared; see `arms.py`.
        labels: numbers of labelled training cases, or `all`.
        seeds: of the runs; they set the initial weights and which cases are labelled.
        folds: of nnU-Net's five-fold cross-validation; or
        test_cases: how many cases, or which, are the test split of all runs.
        configuration: of the plans.
        spacing: target spacing of `3d_fullres` in mm, in nnU-Net's axis order; nnU-Net's own when empty.
        orientation: of the images that networks are trained on: `as_stored`, as nnU-Net's default reader leaves them,
            or `RAS`, as in pretraining.
        length: of a training.
        device: `cpu` or `cuda`.
        mirroring: whether predictions are averaged over mirrored images, as nnU-Net does by default.
        mirrored_training: whether augmentation mirrors, as nnU-Net does by default. Without it `mirroring` is not
            possible.
        plans: changes of every arm's plans: `patch_size`, `batch_size`, `features_per_stage` (of nnU-Net's U-Nets).
        settings: of fine-tuning, for all SwinFUSE arms (`initial_lr`...).
        pretraining: needed where an arm has a recipe.
        comparisons: pairs of arms whose differences are tested; default: all pairs.
        no_loss: pairs of arms for which a loss beyond a margin shall be ruled out.
        baseline: the arm whose repeated runs show the noise; default: the first.
        tolerance_mm: of the surface Dice.
        alpha: family-wise error rate.
        transductive: pretraining may have seen images of test cases; printed in every table.
    """

    name: str
    datasets: tuple[int, ...]
    arms: tuple[Arm, ...]
    labels: tuple[Labels, ...] = ("all",)
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: tuple[int, ...] = ()
    test_cases: int | tuple[str, ...] | None = None
    configuration: str = "3d_fullres"
    spacing: tuple[float, ...] = ()
    orientation: Orientation = AS_STORED
    length: Length = Length()
    device: Device = "cuda"
    mirroring: bool = True
    mirrored_training: bool = True
    plans: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, float] = field(default_factory=dict)
    pretraining: Pretraining | None = None
    comparisons: tuple[tuple[str, str], ...] = ()
    no_loss: NoLoss | None = None
    baseline: str = ""
    tolerance_mm: float = 1.0
    alpha: float = 0.05
    transductive: bool = False

    def __post_init__(self) -> None:
        for name in ("datasets", "arms", "labels", "seeds", "folds"):
            values = tuple(getattr(self, name))
            if name != "folds" and not values:
                raise BenchmarkError(f"{name} is empty; expected one or several")
            if len({v.name if isinstance(v, Arm) else v for v in values}) != len(values):
                raise BenchmarkError(f"{name} has an entry twice")
            object.__setattr__(self, name, values)
        if isinstance(self.test_cases, list | tuple):
            object.__setattr__(self, "test_cases", tuple(map(str, self.test_cases)))
        self._check_split()
        for count in self.labels:
            if count != "all":
                _require_count("labels", count, '; expected numbers of cases, or "all"')
        for seed in (*self.seeds, *self.datasets):
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                raise BenchmarkError(f"seeds and datasets: {seed!r} is no number; expected 0 or more")
        for name, choices in (("device", get_args(Device)), ("orientation", get_args(Orientation))):
            if getattr(self, name) not in choices:
                raise BenchmarkError(f"{name} is {getattr(self, name)!r}; expected one of {list(choices)}")
        if self.configuration.startswith("2d"):
            raise BenchmarkError("configuration 2d: SwinFUSE is a 3D network; expected one such as 3d_fullres")
        if self.mirroring and not self.mirrored_training:
            raise BenchmarkError("mirroring is true; expected false where mirrored_training is")
        object.__setattr__(self, "spacing", tuple(float(distance) for distance in self.spacing))
        if self.spacing and (len(self.spacing) != 3 or min(self.spacing) <= 0 or self.configuration != "3d_fullres"):
            raise BenchmarkError(
                f"spacing is {list(self.spacing)}; expected three numbers above 0 in mm, with configuration 3d_fullres"
            )
        for plans in (self.plans, *(arm.plans for arm in self.arms)):
            _refuse_unknown("plans", plans, PLANS_CHANGES)
        if not self.tolerance_mm > 0:
            raise BenchmarkError(f"tolerance_mm is {self.tolerance_mm}; expected more than 0")
        if not 0 < self.alpha < 1:
            raise BenchmarkError(f"alpha is {self.alpha}; expected a probability such as 0.05")
        self._check_arms()

    def _check_split(self) -> None:
        if bool(self.folds) == (self.test_cases is not None):
            raise BenchmarkError("give either 'folds' (such as [0, 1, 2, 3, 4]) or 'test_cases' (such as 40)")
        if not set(self.folds) <= set(range(5)):
            raise BenchmarkError(f"folds are {list(self.folds)}; nnU-Net's cross-validation has 0 to 4")
        count = len(self.test_cases) if isinstance(self.test_cases, tuple) else self.test_cases
        if count is not None and count < 2:
            raise BenchmarkError(
                f"test_cases: {count} case(s). Differences between cases cannot be seen in fewer than 2; the Wilcoxon "
                "test can reach p < 0.05 from 6 on"
            )

    def _check_arms(self) -> None:
        names = [arm.name for arm in self.arms]
        recipes = [arm.name for arm in self.arms if arm.recipe]
        if recipes and self.pretraining is None:
            raise BenchmarkError(
                f"arms {', '.join(recipes)} need a pretrained encoder: give 'pretraining' (such as "
                '{"collections": ["CTMR"], "preset": "tiny", "steps": 400}) or arms with an "encoder" file'
            )
        for arm in self.arms:
            if arm.trainer.startswith(SWINFUSE) and "features_per_stage" in arm.plans:
                raise BenchmarkError(
                    f"arm {arm.name}: plans.features_per_stage is of nnU-Net's own networks; expected those of "
                    'a SwinFUSE network with its pretraining: {"pretraining": {"feature_size": 24}}'
                )
        pairs = self.comparisons or tuple(combinations(reversed(names), 2))
        object.__setattr__(self, "comparisons", tuple((first, second) for first, second in pairs))
        object.__setattr__(self, "baseline", self.baseline or names[0])
        claims = self.no_loss.pairs if self.no_loss else ()
        named = [name for first, second, *_ in (*self.comparisons, *claims) for name in (first, second)]
        for name in (self.baseline, *named):
            if name not in names:
                raise BenchmarkError(f"comparisons: {name!r} is no arm of this experiment; it has {', '.join(names)}")
        for *_, dataset in claims:
            if dataset not in self.datasets:
                have = ", ".join(map(str, self.datasets))
                raise BenchmarkError(f"no_loss: {dataset!r} is no dataset of this experiment; it has {have}")

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def plans_changes(self, arm: Arm) -> dict[str, Any]:
        """Changes of an arm's plans. The features of SwinFUSE networks are those of their encoder, not of the plans."""
        changes = {**self.plans, **arm.plans}
        if arm.trainer.startswith(SWINFUSE):
            changes.pop("features_per_stage", None)
        return changes

    def pretraining_run(self, arm: Arm, seed: int) -> PretrainingRun | None:
        """The pretraining that a run of an arm begins with; None for an arm without a recipe."""
        if not arm.recipe or self.pretraining is None:
            return None
        settings = {**self.pretraining.settings, **arm.pretraining}
        return PretrainingRun(arm.recipe, settings, arm.pretraining, seed if self.pretraining.per_seed else None)

    def weights_needed(self, run: PretrainingRun) -> bool:
        """Whether an arm begins with what a pretraining learns; arms from random weights take only its sizes."""
        return any(
            arm.pretrained and self.pretraining_run(arm, seed) == run for arm in self.arms for seed in self.seeds
        )

    @property
    def trained_folds(self) -> tuple[int, ...]:
        """The folds of the runs; 0 stands for the training cases beside a test split."""
        return tuple(self.folds) or (0,)

    def folds_share_encoders(self, *arms: str) -> bool:
        """Whether all folds of a seed, but not all seeds, begin with the same encoder, in one of these arms."""
        per_seed = self.pretraining is not None and self.pretraining.per_seed
        return per_seed and any(self.arm(name).recipe and takes_weights(self.arm(name).trainer) for name in arms)

    @property
    def pretraining_runs(self) -> tuple[PretrainingRun, ...]:
        """The pretrainings that all runs need, each once; those of a seed before those of the next."""
        runs: dict[str, PretrainingRun] = {}
        for seed in self.seeds:
            for arm in self.arms:
                run = self.pretraining_run(arm, seed)
                if run is not None and runs.setdefault(run.name, run) != run:
                    raise BenchmarkError(
                        f"arm {arm.name}: its pretraining has the same name, {run.name}, as another one with other "
                        "settings; they would share an encoder. Use values that differ in letters or digits"
                    )
        return tuple(runs.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :func:`from_dict` reads them."""
        return json.loads(json.dumps(asdict(self)))


def from_dict(values: Mapping[str, Any], where: str = "experiment") -> Experiment:
    """Raises BenchmarkError that names `where` and, for an unknown field, lists those that exist."""
    try:
        entries = dict(values)
        _refuse_unknown("experiment", entries, [entry.name for entry in fields(Experiment)])
        missing = [name for name in ("name", "datasets", "arms") if name not in entries]
        if missing:
            raise BenchmarkError(f"{', '.join(missing)} missing")
        entries["arms"] = [resolve_arm(arm) for arm in entries["arms"]]
        if "length" in entries:
            entries["length"] = _block(Length, "length", entries["length"])
        if entries.get("pretraining") is not None:
            entries["pretraining"] = _block(Pretraining, "pretraining", entries["pretraining"])
        if entries.get("no_loss") is not None:
            entries["no_loss"] = _block(NoLoss, "no_loss", entries["no_loss"])
        return Experiment(**entries)
    except BenchmarkError as error:
        raise BenchmarkError(f"{where}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BenchmarkError(f"{where}: a value is of the wrong kind ({error}); see docs/benchmark.md") from error


def load_experiment(path: Path) -> Experiment:
    """Reads an experiment from its JSON file."""
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be read ({error.strerror}); expected an experiment as JSON") from error
    except ValueError as error:
        raise BenchmarkError(f"{path}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise BenchmarkError(f"{path}: holds a {type(values).__name__}; expected a mapping with 'datasets' and 'arms'")
    return from_dict({"name": path.stem, **values}, str(path))


def _block(kind: type[Block], name: str, values: Mapping[str, Any]) -> Block:
    _refuse_unknown(name, values, [entry.name for entry in fields(kind)])  # type: ignore[arg-type]
    return kind(**values)
