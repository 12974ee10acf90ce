"""Through nnU-Net's own entry points: what a training starts from, what it leaves, and what is refused before it."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint, run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_swinfuse.architecture.encoder_file import load_encoder, save_encoder
from nnunetv2_swinfuse.architecture.registry import NETWORK_NAMES
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from nnunetv2_swinfuse.training.trainer import CheckpointError, unwrapped

from .workshop import PLAIN, REGIONS, SETTINGS, TRAINER, make_trainer, publish_encoder

CPU = torch.device("cpu")


def log_of(workshop, fold=0):
    return "\n".join(path.read_text() for path in (workshop.model() / f"fold_{fold}").glob("training_log*"))


def test_what_training_leaves_is_stock_nnunets(trained):
    block = trained.configurations()["3d_fullres"]
    checkpoint = trained.checkpoint()
    sha256 = load_encoder(trained.encoder).sha256
    assert block["architecture"]["network_class_name"] == NETWORK_NAMES["swin"]
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"] == block
    assert checkpoint["swinfuse"]["trainer"] == TRAINER
    assert checkpoint["swinfuse"]["encoder_sha256"] == block["swinfuse"]["encoder_sha256"] == sha256
    assert checkpoint["swinfuse"]["collection"]["name"] == "Synthetic"
    assert not list(trained.model().rglob("*.tmp"))
    assert (trained.model() / "fold_0" / "validation" / "summary.json").is_file()
    log = log_of(trained)
    assert sha256 in log
    assert "tensors matched" in log
    assert '"iterations_per_epoch": 2' in log
    # Two iterations at a rate of 1e-4 or less: a small change of every part.
    changes = re.search(r"change of the pretrained weights, relative to their norm: (.*)", log)[1]
    values = dict(part.rsplit(" ", 1) for part in changes.strip().split(", "))
    assert list(values) == ["patch embedding", "Domain Invariance Module", "encoder stage 0"]
    assert all(0 < float(value) < 0.05 for value in values.values())


@pytest.mark.parametrize("gone", [True, False])
def test_an_encoder_that_is_gone_or_replaced_leaves_the_end_of_the_training_as_it_is(published, capsys, gone):
    trainer = make_trainer()
    trainer.on_train_start()
    source = published.encoder.parent / "run_0" / "encoder.pth"
    if gone:
        source.unlink()
    else:
        shutil.copyfile(publish_encoder(published.encoder, seed=1).source, source)
    trainer.on_train_end()
    output = capsys.readouterr().out
    assert "how far the pretrained weights have moved is not known" in output
    assert ("no such encoder file" if gone else "is another encoder now") in output
    assert (published.model() / "fold_0" / "checkpoint_final.pth").is_file()


def test_an_encoder_that_is_mostly_lost_is_a_warning_with_what_helps(workshop, capsys):
    deep = replace(SETTINGS, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 4))
    publish_encoder(workshop.encoder, settings=deep, halvings=5)
    trainer = make_trainer()
    trainer.initialize()
    log = capsys.readouterr().out
    assert re.search(
        r"SwinFUSE: WARNING: only \d+\.\d % of the encoder's parameters are used: the plans have fewer", log
    )
    assert "swinfuse_pretrain -d COLLECTION --for 901 takes stages, patch and spacing" in log
    assert "unused: encoder stage" in log


def test_images_in_sagittal_order_are_a_warning(published, monkeypatch, capsys):
    trainer = make_trainer()
    trainer.on_train_start()
    assert "axes that the network sees" not in capsys.readouterr().out
    sagittal = {"sitk_stuff": {"direction": (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}}
    monkeypatch.setattr(trainer.dataset_class, "load_case", lambda *_: (None, None, None, sagittal))
    trainer._compare_orientation()
    output = capsys.readouterr().out
    assert "SwinFUSE: WARNING: in 5 of 5 images looked at, the axes" in output
    assert "mirrored compared" not in output


def test_flips_are_a_warning_where_the_training_does_not_mirror(published, monkeypatch, capsys):
    trainer = make_trainer()
    trainer.on_train_start()
    # The volumes are stored as LPS.
    assert "mirrored compared with pretraining" not in capsys.readouterr().out
    configure = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size

    def without_mirroring():
        # As nnUNetTrainerNoMirroring.
        *others, _ = configure()
        trainer.inference_allowed_mirroring_axes = None
        return *others, None

    monkeypatch.setattr(trainer, "configure_rotation_dummyDA_mirroring_and_inital_patch_size", without_mirroring)
    trainer.on_train_start()
    assert re.search(r"WARNING: 5 of 5 images .* \(along back-front, left-right\), and", capsys.readouterr().out)


def test_another_scale_of_ct_is_a_warning_once(published, monkeypatch, capsys):
    properties = {"std": 10.0, "percentile_00_5": -50.0, "percentile_99_5": 250.0}
    encoder = load_encoder(published.encoder)
    record = {"ct": {**properties, "std": 100.0}, "mr_use_mask": False}
    save_encoder(replace(encoder, details={**encoder.details, "normalisation": record}), published.encoder)
    trainer = make_trainer()
    trainer.plans_manager.plans["foreground_intensity_properties_per_channel"] = {"0": properties}
    trainer.configuration_manager.configuration["normalization_schemes"] = ["CTNormalization"]
    trainer.initialize()
    output = capsys.readouterr().out
    assert output.count("SwinFUSE: WARNING: channel 0 (CT): the plans clip intensities to -50 to 250, stand") == 1
    assert "swinfuse_plan_and_preprocess -d 901 --normalisation_as_pretrained" in output


def test_training_starts_from_the_pretrained_weights(published, capsys):
    trainer = make_trainer()
    trainer.initialize()
    weights = trainer.network.state_dict()
    encoder = load_encoder(published.encoder)
    shared = [name for name in encoder.weights if name in weights and ".merging." not in name]
    assert len(shared) > 20
    assert all(torch.equal(weights[name], encoder.weights[name]) for name in shared)
    assert "WARNING: only" not in capsys.readouterr().out


@pytest.mark.parametrize("wanted", [True, False])
def test_a_network_pretrained_as_a_whole_starts_with_its_decoder_if_wanted(workshop, monkeypatch, capsys, wanted):
    encoder = publish_encoder(workshop.encoder, whole=True)
    if not wanted:
        monkeypatch.setenv("SWINFUSE_PRETRAINED_DECODER", "0")
    trainer = make_trainer()
    trainer.initialize()
    # The file has four stages, so the finest of its decoder is number 2.
    finest = trainer.network.decoder.stages[-1].convs[0].conv.weight
    assert torch.equal(finest, encoder.decoder_weights["decoder.stages.2.convs.0.conv.weight"]) == wanted
    stem = trainer.network.stem.convs[1].conv.weight
    assert torch.equal(stem, encoder.decoder_weights["stem.convs.1.conv.weight"]) == wanted
    assert bool(re.search(r"unused: .*stem at full resolution", capsys.readouterr().out)) != wanted
    assert trainer.provenance.training["pretrained_decoder"] == int(wanted)


def test_scratch_has_the_same_network_and_other_weights(published):
    trainer = make_trainer("nnUNetTrainerSwinFUSEScratch_1epoch")
    trainer.initialize()
    weights = trainer.network.state_dict()
    encoder = load_encoder(published.encoder)
    name = "patch_embed.proj.weight"
    assert weights[name].shape == encoder.weights[name].shape
    assert not torch.equal(weights[name], encoder.weights[name])


def test_scratch_has_its_own_learning_rate_and_records_it(published, monkeypatch):
    scratch = make_trainer("nnUNetTrainerSwinFUSEScratch_1epoch")
    scratch.initialize()
    assert {group["initial_lr"] for group in scratch.optimizer.param_groups} == {3e-4}
    assert scratch.initial_lr == scratch.provenance.training["initial_lr"] == 3e-4
    assert make_trainer().initial_lr == make_trainer("nnUNetTrainerSwinFUSEFrozen_1epoch").initial_lr == 1e-4
    monkeypatch.setenv("SWINFUSE_INITIAL_LR", "1e-4")
    assert make_trainer("nnUNetTrainerSwinFUSEScratch_1epoch").provenance.training["initial_lr"] == 1e-4


@pytest.mark.parametrize("module", [True, False])
def test_the_module_starts_at_the_requested_scale(workshop, monkeypatch, module, capsys):
    settings = SETTINGS if module else replace(SETTINGS, domain_invariance=None)
    encoder = publish_encoder(workshop.encoder, settings=settings)
    monkeypatch.setenv("SWINFUSE_DIM_SCALE", "0.25")
    trainer = make_trainer()
    trainer.on_train_start()
    # The plan's network has one stage of the encoder's two.
    weights = {name: weight for name, weight in encoder.weights.items() if not name.startswith("encoder.stages.1.")}
    for name, weight in weights.items():
        factor = 0.25 if name.startswith("encoder.domain_invariance.proj.") else 1
        torch.testing.assert_close(trainer.network.state_dict()[name], factor * weight)
    words = "adds starts multiplied by 0.25." if module else "dim_scale has no effect"
    assert words in capsys.readouterr().out
    trainer.on_train_end()
    changes = re.search(r"change of the pretrained weights, relative to their norm: (.*)", capsys.readouterr().out)[1]
    assert {part.rsplit(" ", 1)[1] for part in changes.split(", ")} == {"0"}


def test_weights_that_are_loaded_later_start_at_the_requested_scale_too(workshop, monkeypatch, capsys):
    publish_encoder(workshop.encoder)
    monkeypatch.setenv("SWINFUSE_DIM_SCALE", "0.25")
    trainer = make_trainer("nnUNetTrainerSwinFUSEFrozen_1epoch")
    trainer.initialize()
    # As nnU-Net does for -pretrained_weights, between initialize and the start of the training.
    projection = trainer.network.encoder.domain_invariance.proj
    torch.nn.init.ones_(projection.weight)
    trainer.on_train_start()
    assert (projection.weight == 0.25).all()
    assert capsys.readouterr().out.count("multiplied by 0.25 and stays so") == 1


def test_the_callers_plans_stay_as_they_are(published):
    plans = json.loads((published.preprocessed / PLAIN / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((published.preprocessed / PLAIN / "dataset.json").read_text())
    plans["continue_training"] = False
    before = json.dumps(plans)
    from nnunetv2_swinfuse.training.trainer import nnUNetTrainerSwinFUSE

    nnUNetTrainerSwinFUSE(plans, "3d_fullres", 0, dataset_json, CPU)
    assert json.dumps(plans) == before


def test_checkpoints_that_a_killed_training_left_half_written_are_removed(published):
    fold = published.model() / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_best.pth.12ab34cd.tmp.pth").write_bytes(b"half")
    (fold / "notes.txt").write_text("of the user")
    make_trainer().on_train_start()
    assert not list(fold.glob("*.tmp*"))
    assert (fold / "notes.txt").is_file()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(published, monkeypatch):
    trainer = make_trainer()
    trainer.initialize()
    path = published.model() / "fold_0" / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnunetv2_swinfuse.architecture.encoder_file.os.fsync", full)
    with pytest.raises(CheckpointError, match=r"checkpoint_latest.pth: cannot be written.*No space left.*GB are free"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("configuration", "publish", "error", "message"),
    [
        ("2d", True, ValueError, "SwinFUSE is for 3d configurations"),
        ("3d_fullres", False, EncoderChoiceError, "nnUNetTrainerSwinFUSEScratch"),
    ],
)
def test_refused_before_anything_is_written(workshop, configuration, publish, error, message):
    if publish:
        publish_encoder(workshop.encoder)
    with pytest.raises(error, match=message):
        run_training("901", configuration, 0, TRAINER, device=CPU)
    assert not (workshop.results / PLAIN).exists()


def test_a_missing_results_path_is_named(published, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(RuntimeError, match="nnUNet_results is not defined"):
        make_trainer()


def check_step(trainer, batch):
    """A step reports the loss of the network on the batch, and moves the weights."""
    trainer.network.train()
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    # Stochastic depth draws the same in both passes.
    torch.manual_seed(1)
    with torch.no_grad():
        expected = trainer.loss(trainer.network(batch["data"]), batch["target"]).item()
    torch.manual_seed(1)
    assert trainer.train_step(batch)["loss"] == pytest.approx(expected, rel=1e-4)
    moved = [not old.equal(new) for old, new in zip(before, trainer.network.parameters(), strict=True)]
    assert sum(moved) > 0.5 * len(moved)


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_deep_supervision_on_and_off_trains_every_parameter(published, deep_supervision):
    trainer = make_trainer()
    trainer.enable_deep_supervision = deep_supervision
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    output = trainer.network(batch["data"])
    if deep_supervision:
        assert [tuple(o.shape[2:]) for o in output] == [tuple(t.shape[2:]) for t in batch["target"]]
    else:
        assert output.shape[2:] == batch["target"].shape[2:]
    check_step(trainer, batch)
    # DistributedDataParallel, as nnU-Net uses it, needs every parameter in every step. The coarsest head has weight 0.
    idle = {name for name, parameter in trainer.network.named_parameters() if parameter.grad is None}
    heads = len(trainer.network.decoder.seg_layers)
    unweighted = range(1) if deep_supervision else range(heads - 1)
    assert idle == {f"decoder.seg_layers.{head}.{kind}" for head in unweighted for kind in ("weight", "bias")}


def test_region_based_training_with_an_ignore_label(published):
    trainer = make_trainer(dataset="902")
    trainer.on_train_start()
    assert trainer.label_manager.has_regions
    assert trainer.label_manager.has_ignore_label
    trainer.network.train()
    check_step(trainer, next(trainer.dataloader_train))
    with torch.no_grad():
        trainer.network.eval()
        counts = trainer.validation_step(next(trainer.dataloader_val))
    assert len(counts["tp_hard"]) == trainer.label_manager.num_segmentation_heads == 2


def test_a_cascade_trains_both_stages(published):
    run_training("901", "3d_lowres", "all", TRAINER, device=CPU)
    trainer = make_trainer(configuration="3d_cascade_fullres")
    trainer.on_train_start()
    assert trainer.num_input_channels == 3  # the image and two foreground classes
    weight = trainer.network.patch_embed.proj.weight
    assert torch.equal(weight[:, :1], load_encoder(published.encoder).weights["patch_embed.proj.weight"])
    assert not weight[:, 1:].any()
    check_step(trainer, next(trainer.dataloader_train))
    assert weight[:, 1:].any()


def test_the_network_is_found_inside_torch_compile():
    network = torch.nn.Linear(2, 2)
    assert unwrapped(torch.compile(network)) is network


@pytest.mark.parametrize("name", ["nnUNetTrainerSwinFUSEScratch_1epoch", "nnUNetTrainer"])
def test_a_checkpoint_of_ours_is_stock_pretrained_weights_for_another_dataset(copied, monkeypatch, tmp_path, name):
    file = copied.model() / "fold_0" / "checkpoint_final.pth"
    # Plans moved between datasets, as nnU-Net asks for when weights are reused: the network comes with them.
    plans = json.loads((copied.model() / "plans.json").read_text())
    plans |= {"dataset_name": REGIONS, "continue_training": False}
    del plans["configurations"]["3d_fullres"]["swinfuse"]
    dataset_json = json.loads((copied.preprocessed / REGIONS / "dataset.json").read_text())
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    trainer = recursive_find_trainer_class_by_name(name)(plans, "3d_fullres", 0, dataset_json, CPU)
    assert isinstance(trainer, nnUNetTrainer)
    maybe_load_checkpoint(trainer, False, False, str(file))
    ours, theirs = trainer.network.state_dict(), copied.checkpoint()["network_weights"]
    same = {key for key, tensor in ours.items() if tensor.shape == theirs[key].shape and tensor.equal(theirs[key])}
    assert set(ours) - same == {key for key in ours if ".seg_layers." in key}
    check_step(trainer, next(trainer.get_dataloaders()[0]))


def test_starts_from_a_monai_checkpoint(published, tmp_path, monkeypatch, capsys):
    swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr")
    peer = swin_unetr.SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4), window_size=3)
    torch.save({"state_dict": peer.state_dict()}, tmp_path / "swin_unetr.pt")
    monkeypatch.setenv("SWINFUSE_CHECKPOINT", str(tmp_path / "swin_unetr.pt"))
    monkeypatch.setenv("SWINFUSE_MONAI_MERGING", "merging")
    trainer = make_trainer()
    trainer.initialize()
    weight = unwrapped(trainer.network).patch_embed.proj.weight
    # MONAI's axes are x, y, z; the sums over a patch survive another patch stride.
    expected = peer.swinViT.patch_embed.proj.weight
    torch.testing.assert_close(weight.sum((2, 3, 4)), expected.sum((2, 3, 4)))
    assert trainer.provenance.encoder == str(tmp_path / "swin_unetr.pt")
    assert "merging=merging" in trainer.provenance.collection["name"]
    # Resumed in a shell without the variable, the same file is read otherwise.
    trainer.on_train_start()
    monkeypatch.delenv("SWINFUSE_MONAI_MERGING")
    capsys.readouterr()
    trainer.on_train_end()
    assert "have moved is not known" in capsys.readouterr().out
