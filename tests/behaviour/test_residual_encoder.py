"""The backbone `resenc` through the same trainer: nnU-Net's ResEnc plans and default plans, stock prediction."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunetv2_swinfuse.architecture.registry import RESENC_PLANS
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from tests.nnunetv2_swinfuse.training.workshop import PLAIN, RESIDUAL, TRAINER, Workshop, make_trainer, publish_encoder
from tests.threads import use_threads

from .commands import plan, train
from .test_stock_inference import PREDICT


@pytest.fixture
def residual(workshop):
    """An empty results folder with a residual encoder published."""
    publish_encoder(workshop.encoder, settings=RESIDUAL)
    return workshop


def pretrained_state(network) -> dict[str, torch.Tensor]:
    return {n: t for n, t in network.state_dict().items() if n.startswith(("patch_embed.", "encoder."))}


def test_nnunets_residual_plans_are_trained_and_predicted_by_stock_nnunet(residual, tmp_path, monkeypatch):
    use_threads(monkeypatch)
    shutil.copytree(residual.preprocessed, tmp_path / "preprocessed")
    folders = Workshop(residual.raw, tmp_path / "preprocessed", residual.results)
    folders.use(monkeypatch)
    plan(901, "-pl", "nnUNetPlannerResEncM")
    train(901, "3d_fullres", 0, TRAINER, "-p", RESENC_PLANS)
    model = folders.results / PLAIN / f"{TRAINER}__{RESENC_PLANS}__3d_fullres"
    block = json.loads((model / "plans.json").read_text())["configurations"]["3d_fullres"]
    planned = json.loads((folders.preprocessed / PLAIN / f"{RESENC_PLANS}.json").read_text())
    planned = planned["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    architecture = block["architecture"]
    assert architecture["network_class_name"] == "nnunetv2_swinfuse.architecture.residual_unet.ResEncFUSEUNet"
    for name in ("strides", "kernel_sizes"):
        assert architecture["arch_kwargs"][name] == planned[name]
    assert architecture["arch_kwargs"]["feature_size"] == RESIDUAL.feature_size
    assert block["swinfuse"]["pretrained_stages"] == min(4, len(planned["strides"]))
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert np.isfinite(checkpoint["logging"]["train_losses"]).all()

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet", "SWINFUSE"))}
    image = folders.raw / PLAIN / "imagesTr" / "case_0_0000.nii.gz"
    arguments = [str(model), str(image), str(tmp_path / "mask")]
    result = subprocess.run(
        [sys.executable, "-c", PREDICT, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert mask.GetSize() == sitk.ReadImage(str(image)).GetSize()
    assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}


def test_default_plans_begin_with_the_pretrained_tensors_and_decay_by_layer(residual, capsys):
    trainer = make_trainer()
    trainer.initialize()
    assert "tensors matched, 0 adapted" in capsys.readouterr().out
    encoder = publish_encoder(residual.encoder, settings=RESIDUAL)
    transferred = pretrained_state(trainer.network)
    common = transferred.keys() & encoder.weights.keys()
    assert {name.split(".")[0] for name in common} == {"patch_embed", "encoder"}
    assert all(torch.equal(transferred[name], encoder.weights[name]) for name in common)
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    stages = len(trainer.network.topology.stage_strides)
    # New parameters, then the pretrained stages from the deepest on, the module, the stem.
    pretrained = min(stages, 4)
    assert sorted(rates, reverse=True) == pytest.approx([1e-4 * 0.9**i for i in range(pretrained + 3)])


def test_the_frozen_trainer_trains_only_the_decoder(residual):
    run = make_trainer("nnUNetTrainerSwinFUSEFrozen_1epoch")
    run.initialize()
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    run.run_training()
    after = run.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in pretrained_state(run.network))
    assert not torch.equal(
        after["decoder.stages.0.convs.0.conv.weight"], before["decoder.stages.0.convs.0.conv.weight"]
    )


@pytest.mark.parametrize(
    ("trainer", "configuration", "warned"),
    [
        ("nnUNetTrainerSwinFUSEFrozen", "3d_cascade_fullres", True),
        ("nnUNetTrainerSwinFUSE", "3d_cascade_fullres", False),
        ("nnUNetTrainerSwinFUSEFrozen", "3d_fullres", False),
    ],
)
def test_a_frozen_cascade_warns_that_it_does_not_see_the_stage_before(residual, capsys, trainer, configuration, warned):
    run = make_trainer(trainer, configuration=configuration)
    run.initialize()
    assert ("does not see the segmentation of the previous stage" in capsys.readouterr().out) == warned
    if warned:
        # No weight that will be trained reads the other channels, and those that do are zero.
        image = torch.randn(1, 3, *run.configuration_manager.patch_size)
        other = torch.cat([image[:, :1], torch.randn_like(image[:, 1:])], 1)
        network = run.network.eval()
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(network(image), network(other), strict=True))


def test_a_model_is_not_continued_with_another_backbone(residual):
    run = make_trainer(fold=0)
    (residual.model() / "fold_0").mkdir(parents=True, exist_ok=True)
    run.initialize()
    run.save_checkpoint(str(residual.model() / "fold_0" / "checkpoint_final.pth"))
    (residual.model() / "plans.json").write_text(json.dumps(run.plans_manager.plans))
    publish_encoder(residual.encoder)
    with pytest.raises(EncoderChoiceError, match="All folds of a model need the same one"):
        get_trainer_from_args("901", "3d_fullres", 1, TRAINER, device=torch.device("cpu")).initialize()
