"""The arms that an experiment can name: trainer, planner, pretraining recipe and settings, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.errors import BenchmarkError

SWINFUSE = "nnUNetTrainerSwinFUSE"
# The recipe of `swinfuse_pretrain` that trains for no step: the initial weights.
UNTRAINED = "none"
DEFAULT_PLANNER = "ExperimentPlanner"
SWINFUSE_PLANNER = "nnUNetPlannerSwinFUSE"
# Names of the plans that each planner writes.
PLANS = {
    DEFAULT_PLANNER: "nnUNetPlans",
    "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans",
    "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
    "nnUNetPlannerResEncXL": "nnUNetResEncUNetXLPlans",
    SWINFUSE_PLANNER: "nnUNetSwinFUSEPlans",
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: letters, digits and underscores; what tables and folders call it.
        trainer: name of a trainer that nnU-Net finds.
        planner: name of a planner, one of :data:`PLANS`.
        recipe: of `swinfuse_pretrain`; the experiment pretrains this encoder. Empty: no pretraining.
        pretraining: options of `swinfuse_pretrain` for this arm's encoder only, such as `{"dim": "none"}`.
        encoder: a file to use in place of a pretraining.
        settings: of fine-tuning (`SWINFUSE_*` variables in lower case), such as `initial_lr`.
        plans: changes of the plans that belong to this arm only; see `Experiment.plans`.
    """

    name: str
    trainer: str = "nnUNetTrainer"
    planner: str = DEFAULT_PLANNER
    recipe: str = ""
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    encoder: str = ""
    settings: Mapping[str, float] = field(default_factory=dict)
    plans: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").isalnum() or "__" in self.name:
            raise BenchmarkError(f"arm {self.name!r}: expected letters, digits and single underscores")
        if self.planner not in PLANS:
            raise BenchmarkError(f"arm {self.name}: no planner {self.planner!r}; there are {', '.join(PLANS)}")
        if self.recipe and self.encoder:
            raise BenchmarkError(f"arm {self.name}: give a recipe or an encoder file, not both")
        if self.pretraining and not self.recipe:
            raise BenchmarkError(f"arm {self.name}: 'pretraining' changes a recipe; give 'recipe' too")
        if self.encoder and not Path(self.encoder).is_file():
            raise BenchmarkError(f"arm {self.name}: {self.encoder}: no such encoder file")

    @property
    def plans_name(self) -> str:
        return PLANS[self.planner]

    @property
    def pretrained(self) -> bool:
        """Whether the training begins with weights that an encoder has learnt."""
        return begins_pretrained(self.trainer, self.recipe, self.encoder)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if not self.pretraining:
            # Records of cells of before this field was there stay equal to new ones.
            del values["pretraining"]
        return values


def takes_weights(trainer: str) -> bool:
    """Whether a trainer takes the weights of an encoder; the trainer from scratch takes only its sizes."""
    return "Scratch" not in trainer


def begins_pretrained(trainer: str, recipe: str, encoder: str) -> bool:
    """Whether a training begins with weights that an encoder has learnt; arguments as those of :class:`Arm`."""
    return bool(encoder or recipe not in ("", UNTRAINED)) and takes_weights(trainer)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("nnunet"),
        Arm("resenc_m", planner="nnUNetPlannerResEncM"),
        Arm("resenc_l", planner="nnUNetPlannerResEncL"),
        Arm("swin_unetr", trainer="nnUNetTrainerSwinUNETR"),
        Arm("swinfuse", SWINFUSE, recipe="swinfuse"),
        # The network has the sizes of the encoder that `swinfuse` starts from.
        Arm("scratch", f"{SWINFUSE}Scratch", recipe="swinfuse"),
        Arm("frozen", f"{SWINFUSE}Frozen", recipe="swinfuse"),
        Arm("frozen_random", f"{SWINFUSE}Frozen", recipe=UNTRAINED),
        Arm("ct", SWINFUSE, recipe="ct"),
        Arm("mr", SWINFUSE, recipe="mr"),
        Arm("no_dim", SWINFUSE, recipe="no_dim"),
        Arm("no_density", SWINFUSE, recipe="no_density"),
        Arm("no_dim_no_density", SWINFUSE, recipe="no_dim_no_density"),
        Arm("simmim", SWINFUSE, recipe="simmim"),
    )
}
DESCRIPTIONS = {
    "nnunet": "nnU-Net's default trainer and plans",
    "resenc_m": "nnU-Net's residual encoder, preset M",
    "resenc_l": "nnU-Net's residual encoder, preset L",
    "swin_unetr": "MONAI's Swin UNETR from random weights in nnU-Net's training (extra: benchmark)",
    "swinfuse": "SwinFUSE, pretrained on CT and MR",
    "scratch": "the network of `swinfuse` from random weights; same plans and schedule, its own learning rate",
    "frozen": "as `swinfuse`, the pretrained encoder is not trained further",
    "frozen_random": "the network of `swinfuse` with an encoder that stays as initialised",
    "ct": "as `swinfuse`, pretrained on CT only",
    "mr": "as `swinfuse`, pretrained on MR only",
    "no_dim": "pretrained without the Domain Invariance Module",
    "no_density": "pretrained without density matching",
    "no_dim_no_density": "pretrained on CT and MR with neither of the two",
    "simmim": "pretrained by masked image modelling",
}


def resolve_arm(value: str | Mapping[str, Any]) -> Arm:
    """A known arm by its name, or one that a mapping describes (`like` names a known arm to begin with).

    Raises:
        BenchmarkError: listing the arms or fields that exist.
    """
    if isinstance(value, str):
        if value not in ARMS:
            raise BenchmarkError(f"no arm {value!r}; there are {', '.join(ARMS)}. Others are described by a mapping")
        return ARMS[value]
    entries = dict(value)
    base = resolve_arm(entries.pop("like")) if "like" in entries else None
    known = [f.name for f in fields(Arm)]
    unknown = sorted(set(entries) - set(known))
    if unknown or "name" not in entries:
        raise BenchmarkError(
            f"arm {entries.get('name', value)!r}: "
            + (f"unknown fields {', '.join(unknown)}" if unknown else "'name' is missing")
            + f"; an arm has {', '.join([*known, 'like'])}"
        )
    if base is None:
        return Arm(**entries)
    if entries.get("encoder"):
        entries = {"recipe": "", "pretraining": {}, **entries}
    return replace(base, **entries)
