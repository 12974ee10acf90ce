"""Every kind of nnU-Net dataset: planned, preprocessed, trained two iterations, validated and predicted by nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_swinfuse.architecture.encoder_file import load_encoder
from tests.nnunetv2_swinfuse.training.workshop import TRAINER, Workshop, publish_encoder
from tests.threads import use_threads

from .commands import plan, predict, preprocess, train

pytestmark = pytest.mark.slow

CASES = 5


@dataclass(frozen=True)
class Kind:
    """A synthetic dataset.

    Attributes:
        dataset: its id.
        shape, spacing: of the volumes (z, y, x), voxels and mm.
        channels: nnU-Net's channel names.
        labels, entries: of dataset.json; the classes are 1 (a cuboid) and 2 (one within it).
        patch: another patch size than the planner's.
        planner, plans: another planner than nnU-Net's default, and what its plans are called.
        expected: labels that may be predicted.
    """

    dataset: int
    shape: tuple[int, int, int] = (20, 24, 22)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: tuple[str, ...] = ("MR",)
    labels: dict = field(default_factory=lambda: {"background": 0, "shell": 1, "core": 2})
    entries: dict = field(default_factory=dict)
    ignore: int | None = None
    patch: tuple[int, int, int] | None = None
    planner: str | None = None
    plans: str = "nnUNetPlans"
    expected: frozenset[int] = frozenset({0, 1, 2})

    @property
    def name(self) -> str:
        return f"Dataset{self.dataset}_Kind"


REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}
KINDS = {
    "four_channels_regions": Kind(
        921, channels=("T1", "T1ce", "T2", "FLAIR"), labels=REGIONS, entries={"regions_class_order": [1, 2]}
    ),
    "ct_and_mr_ignore_label": Kind(
        922, channels=("CT", "MR"), labels={"background": 0, "shell": 1, "core": 2, "ignore": 3}, ignore=3
    ),
    "regions_and_ignore_label": Kind(
        923, labels={**REGIONS, "ignore": 3}, ignore=3, entries={"regions_class_order": [1, 2]}
    ),
    "slices_of_5_mm": Kind(924, shape=(9, 48, 40), spacing=(5.0, 0.8, 0.8)),
    "tiny_patch": Kind(925, patch=(8, 8, 8)),
    "patch_larger_than_the_volumes": Kind(926, patch=(64, 80, 64)),
    "residual_encoder_plans": Kind(928, planner="nnUNetPlannerResEncM", plans="nnUNetResEncUNetMPlans"),
}
# The one with spawned processes, as users have them; the others use threads.
SPAWNED = "four_channels_regions"


def write_raw(kind: Kind, raw: Path) -> Path:
    """Writes the training cases and one test image; returns the folder of the latter."""
    folder = raw / kind.name
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for case in range(CASES + 1):
        generator = np.random.default_rng(case)
        label = np.zeros(kind.shape, np.uint8)
        start = [int(generator.integers(1, 1 + size // 4)) for size in kind.shape]
        for value, part in ((1, 2), (2, 4)):
            low = [s + size // 8 * (value - 1) for s, size in zip(start, kind.shape, strict=True)]
            label[tuple(slice(a, a + max(size // part, 2)) for a, size in zip(low, kind.shape, strict=True))] = value
        for channel, channel_name in enumerate(kind.channels):
            scale = -1.0 if channel_name == "CT" else 1.0 + channel
            image = 100.0 * scale * label + generator.normal(0, 10, label.shape)
            path = folder / ("imagesTr" if case < CASES else "imagesTs") / f"case_{case}_{channel:04d}.nii.gz"
            write(image.astype(np.float32), kind, path)
        if kind.ignore is not None:
            label[:, :4] = kind.ignore
        if case < CASES:
            write(label, kind, folder / "labelsTr" / f"case_{case}.nii.gz")
    content = {
        "channel_names": {str(index): name for index, name in enumerate(kind.channels)},
        "labels": kind.labels,
        "numTraining": CASES,
        "file_ending": ".nii.gz",
        **kind.entries,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "imagesTs"


def write(array: np.ndarray, kind: Kind, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(kind.spacing[::-1])
    sitk.WriteImage(image, str(path))


def edit_plans(workshop: Workshop, kind: Kind, change: Callable[[dict], None]) -> None:
    path = workshop.preprocessed / kind.name / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    change(plans["configurations"])
    path.write_text(json.dumps(plans))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """Three empty folders and a published encoder."""
    workshop = Workshop(*(tmp_path / name for name in ("raw", "preprocessed", "results")))
    for folder in (workshop.raw, workshop.preprocessed, workshop.results):
        folder.mkdir()
    workshop.use(monkeypatch)
    publish_encoder(workshop.encoder)
    return workshop


def check_model(folders: Workshop, kind: Kind, configuration: str = "3d_fullres", fold: object = 0) -> dict:
    """What a training must leave; returns its checkpoint."""
    model = folders.results / kind.name / f"{TRAINER}__{kind.plans}__{configuration}"
    checkpoint = torch.load(model / f"fold_{fold}" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert np.isfinite(checkpoint["logging"]["train_losses"]).all()
    assert np.isfinite(checkpoint["logging"]["val_losses"]).all()
    steps = {int(state["step"]) for state in checkpoint["optimizer_state"]["state"].values()}
    assert steps == {2}
    assert (model / f"fold_{fold}" / "validation" / "summary.json").is_file()
    return checkpoint


def check_prediction(kind: Kind, images: Path, output: Path) -> None:
    (mask,) = output.glob("*.nii.gz")
    mask, image = sitk.ReadImage(str(mask)), sitk.ReadImage(str(next(images.glob("*_0000.nii.gz"))))
    assert (mask.GetSize(), mask.GetSpacing()) == (image.GetSize(), image.GetSpacing())
    assert set(np.unique(sitk.GetArrayFromImage(mask))) <= kind.expected


@pytest.mark.parametrize("name", KINDS)
def test_trains_validates_and_predicts(folders, tmp_path, monkeypatch, name):
    if name != SPAWNED:
        use_threads(monkeypatch)
    kind = KINDS[name]
    images = write_raw(kind, folders.raw)
    plan(kind.dataset, *(("-pl", kind.planner) if kind.planner else ()))
    if kind.patch:
        edit_plans(folders, kind, lambda c: c["3d_fullres"].update(patch_size=list(kind.patch), batch_size=2))
    preprocess(kind.dataset, "3d_fullres", plans=kind.plans)
    train(kind.dataset, "3d_fullres", 0, TRAINER, "-p", kind.plans)
    checkpoint = check_model(folders, kind)
    block = checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]
    if name == "slices_of_5_mm":
        assert block["patch_size"][0] < block["patch_size"][1] / 3
        assert [1, 2, 2] in block["architecture"]["arch_kwargs"]["strides"]
    weight = checkpoint["network_weights"]["patch_embed.proj.weight"]
    assert weight.shape[1] == len(kind.channels)
    heads = checkpoint["network_weights"]["decoder.seg_layers.0.weight"].shape[0]
    assert heads == (2 if "regions_class_order" in kind.entries else 3)
    predict(kind.dataset, "3d_fullres", TRAINER, images, tmp_path / "out", "-p", kind.plans)
    check_prediction(kind, images, tmp_path / "out")


def test_a_cascade_trains_and_predicts_from_the_stage_before(folders, tmp_path, monkeypatch):
    use_threads(monkeypatch)
    kind = Kind(927)
    images = write_raw(kind, folders.raw)
    plan(kind.dataset)

    def cascade(configurations: dict) -> None:
        # Volumes this small get no cascade from the planner.
        configurations["3d_lowres"] = {
            "inherits_from": "3d_fullres",
            "data_identifier": "nnUNetPlans_3d_lowres",
            "spacing": [1.5, 1.5, 1.5],
            "patch_size": [16, 16, 16],
            "next_stage": "3d_cascade_fullres",
        }
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}

    edit_plans(folders, kind, cascade)
    preprocess(kind.dataset, "3d_fullres", "3d_lowres")
    train(kind.dataset, "3d_lowres", "all", TRAINER)
    check_model(folders, kind, "3d_lowres", "all")
    train(kind.dataset, "3d_cascade_fullres", 0, TRAINER)
    weight = check_model(folders, kind, "3d_cascade_fullres")["network_weights"]["patch_embed.proj.weight"]
    # The image, and the two classes of the stage before, which began at zero.
    assert weight.shape[1] == 3
    assert weight[:, 1:].abs().max() < 0.01 < weight[:, :1].abs().max()
    pretrained = load_encoder(folders.encoder).weights["patch_embed.proj.weight"]
    torch.testing.assert_close(weight[:, :1], pretrained, atol=1e-3, rtol=0)
    predict(kind.dataset, "3d_lowres", TRAINER, images, tmp_path / "low", "-f", "all")
    stage = ("-prev_stage_predictions", tmp_path / "low")
    predict(kind.dataset, "3d_cascade_fullres", TRAINER, images, tmp_path / "out", *stage)
    check_prediction(kind, images, tmp_path / "out")
