"""Sizes from plans, checked by what they are for: all of the encoder is used by each plan's network.

The tables are what nnU-Net 2.8.1 planned for real datasets (numbers only).
"""

import json
import shlex

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import build_network, plans_architecture
from nnunetv2_swinfuse.architecture.transfer import transfer_encoder
from nnunetv2_swinfuse.errors import InputError
from pretraining.cli import main
from pretraining.configuration import Configuration
from pretraining.model import PretrainingModel
from pretraining.next_commands import train_command
from pretraining.options import build_parser, check_options
from pretraining.plan_sizes import fitted_sizes, read_plan, shared_ct_intensities
from pretraining.preset_files import load_preset
from pretraining.views import ViewSettings, draw_view

from .nnunet_plans import CT, REAL, H, plans_content, with_channels, write_plans


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    write_plans(tmp_path)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return tmp_path


def sizes(preprocessed, *datasets, preset="base", recipe="swinfuse", **changes):
    plans = [read_plan(preprocessed, dataset) for dataset in datasets]
    base = load_preset(preset, recipe)
    fitted = fitted_sizes(plans, Configuration.from_dict(base))
    return Configuration.from_dict({**base, **fitted, **changes}), plans


@pytest.mark.parametrize(
    ("preset", "datasets", "stages", "crop", "spacing"),
    [
        ("base", ["501"], 4, (40, 40, 40), (1, 1, 1)),
        ("tiny", ["501"], 4, (32, 32, 32), (1, 1, 1)),
        ("base", ["502"], 5, (128, 64, 64), (3.0, 4.688, 4.688)),
        ("small", ["503"], 5, (64, 64, 64), (2, 2, 2)),
        # As many tokens as the preset's crop has: half the voxels, since z is not halved at first.
        ("base", ["510"], 6, (40, 96, 96), (7.7, 2.5, 2.5)),
        ("tiny", ["511"], 6, (16, 32, 32), (5, 2.5, 2.5)),
        # The last strides differ; the mean spacing is the geometric one.
        ("base", ["510", "511"], 5, (32, 112, 112), (6.2048, 2.5, 2.5)),
        ("base", ["Dataset503_BrainMR", "501"], 4, (40, 40, 40), (1.4142, 1.4142, 1.4142)),
        # More stages than Swin stages: the rest are convolutions.
        ("base", ["520"], 6, (96, 96, 96), (1, 1, 1)),
    ],
)
def test_stages_crop_and_spacing(preprocessed, preset, datasets, stages, crop, spacing):
    configuration, plans = sizes(preprocessed, *datasets, preset=preset)
    assert all(plan.strides[:stages] == configuration.strides for plan in plans)
    assert len(configuration.depths) == len(configuration.num_heads) == stages - 2
    assert configuration.crop_size == crop
    assert configuration.spacing == pytest.approx(spacing)


@pytest.mark.parametrize("recipe", ["swinfuse", "resenc"])
@pytest.mark.parametrize("preset", ["tiny", "base"])
@pytest.mark.parametrize("dataset", sorted(name[7:10] for name in REAL))
def test_a_part_of_every_crop_is_cut_out_and_a_part_stays(preprocessed, dataset, preset, recipe):
    configuration, _ = sizes(preprocessed, dataset, preset=preset, recipe=recipe)
    settings = ViewSettings(configuration.corrupted_share, configuration.masking, configuration.mask_cells)
    mask = draw_view(configuration.crop_size, settings, [torch.Generator().manual_seed(0)]).mask
    assert 0.5 < mask.float().mean() < 0.7


@pytest.mark.parametrize("recipe", ["swinfuse", "resenc"])
@pytest.mark.parametrize("datasets", [["501"], ["502"], ["510"], ["510", "511"], ["501", "503"], ["520"]])
def test_each_plans_network_uses_all_of_the_encoder(preprocessed, recipe, datasets):
    configuration, plans = sizes(preprocessed, *datasets, preset="tiny", recipe=recipe, feature_size=6)
    # Names and shapes decide; no weights are needed.
    with torch.device("meta"):
        model = PretrainingModel(configuration)
        networks = [
            build_network(plans_architecture(plan.strides, configuration.encoder_settings), 1, 3) for plan in plans
        ]
    encoder = Encoder(model.encoder_weights(), configuration.encoder_settings, configuration.topology.strides)
    for network in networks:
        report = transfer_encoder(network, encoder)
        assert report.used_share == 1
        assert not report.adapted
        assert "100.0 % of the encoder" in str(report)


def test_without_for_most_of_the_default_encoder_is_lost(preprocessed):
    # 20.9 % of the network, 8.1 % of the encoder.
    configuration = Configuration.from_dict(load_preset("base"))
    strides = read_plan(preprocessed, "501").strides
    with torch.device("meta"):
        model = PretrainingModel(configuration)
        network = build_network(plans_architecture(strides, configuration.encoder_settings), 1, 3)
    encoder = Encoder(model.encoder_weights(), configuration.encoder_settings, configuration.topology.strides)
    report = transfer_encoder(network, encoder)
    assert report.used_share == pytest.approx(0.081, abs=0.003)
    assert report.pretrained_share == pytest.approx(0.209, abs=0.01)
    assert report.little_used


def test_residual_plans_decide_on_the_blocks_of_a_residual_encoder(preprocessed):
    plan = read_plan(preprocessed, "501", "nnUNetResEncUNetMPlans")
    residual = Configuration.from_dict(load_preset("tiny", "resenc"))
    assert plan.blocks == (1, 3, 4, 6)
    assert fitted_sizes([plan], residual)["depths"] == (1, 3, 4, 6)
    assert fitted_sizes([plan], Configuration.from_dict(load_preset("tiny")))["depths"] == (2, 2)


def test_another_configuration_inherits(preprocessed):
    plan = read_plan(preprocessed, "501", configuration="3d_lowres")
    assert plan.spacing == (2.0, 2.0, 2.0)
    assert plan.patch_size == (40, 56, 40)


def rewrite(change):
    def apply(folder):
        file = folder / "Dataset501_Hippocampus" / "nnUNetPlans.json"
        file.write_text(change(file.read_text()))

    return apply


def edited(**values):
    return rewrite(lambda _: json.dumps(plans_content(**{**REAL["Dataset501_Hippocampus"], **values})))


PATH = "Dataset501_Hippocampus/nnUNetPlans.json"
BAD = {
    "no dataset": (
        lambda _: None,
        ["77"],
        "Dataset077_.*does not exist. Create it with: nnUNetv2_plan_and_preprocess -d 77",
    ),
    "no plans": (
        lambda folder: (folder / PATH).unlink(),
        ["501"],
        f"{PATH} does not exist. Create it with: .* -d 501. The dataset has nnUNetResEncUNetMPlans: --for_plans NAME",
    ),
    "no number": (lambda _: None, ["Hippocampus"], "expected the number or name of an nnU-Net dataset, such as 501"),
    "two folders": (lambda folder: (folder / "Dataset501_B").mkdir(), ["501"], "several folders .*Dataset501_B"),
    "no JSON": (
        rewrite(lambda text: text[:99]),
        ["501"],
        f"{PATH}, configuration 3d_fullres: cannot be used .JSONDecode",
    ),
    "a list": (rewrite(lambda _: "[]"), ["501"], f"{PATH}.* cannot be used .TypeError"),
    "2d only": (rewrite(lambda _: '{"configurations": {"2d": {}}}'), ["501"], "no 3d configuration '3d_fullres'"),
    "old plans": (
        rewrite(lambda text: text.replace('"strides"', '"pool"')),
        ["501"],
        "KeyError: 'strides'.*Plan the data",
    ),
    "circle": (
        rewrite(lambda text: text.replace('"patch_size": [40', '"inherits_from": "3d_fullres", "p": [40')),
        ["501"],
        "cannot be used .RecursionError",
    ),
    "strides of 4": (edited(strides=[[4, 4, 4]]), ["501"], "expected 1 or 2 for each axis"),
    "spacing": (edited(spacing=[1, 0, 1]), ["501"], "spacing is .1, 0, 1."),
    "flat": (edited(strides=[H]), ["501"], "2 first stages in common, an encoder needs 3"),
    "strides": (
        edited(strides=[[1, 2, 2], H, H]),
        ["501", "503"],
        r"1 first stages in common.*Dataset501_Hippocampus: \[\[1, 1, 1\], \[1, 2, 2\].*Dataset503_Br",
    ),
    "spacings": (lambda _: None, ["501", "502"], "spacings .* differ by more than a factor of 2 .*3.0, 4.688, 4.688"),
    "transposed": (
        edited(strides=[[1, 2, 2], H, H], transpose=[2, 0, 1]),
        ["501"],
        "do not halve the exchanged axes alike",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_plans_that_cannot_be_used_are_named(preprocessed, case):
    spoil, datasets, words = BAD[case]
    spoil(preprocessed)
    with pytest.raises(InputError, match=f"(?s)--for.*{words}"):
        sizes(preprocessed, *datasets)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("nnUNetResEncUNetLPlans", "nnUNetv2_plan_and_preprocess -d 503 -pl nnUNetPlannerResEncL"),
        ("nnUNetSwinFUSEPlans", "swinfuse_plan_and_preprocess -d 503"),
        ("nnUNetSwinFUSEXLPlans", "swinfuse_plan_and_preprocess -d 503 -preset XL"),
        ("myPlans", "Plan the dataset with nnU-Net first"),
    ],
)
def test_the_command_makes_the_plans_that_are_missing(preprocessed, name, command):
    with pytest.raises(InputError, match=f"{name}.json does not exist. (Create it with: )?{command}. "):
        read_plan(preprocessed, "503", name)


def options(*words):
    parsed = build_parser().parse_args(["-d", "CTMR", *words])
    check_options(parsed)
    return parsed


def test_the_training_command_after_preprocessing_has_the_same_plans():
    parsed = options("-p", "tiny", "--for", "501", "--for_plans", "myPlans", "--preprocess_only")
    command = "swinfuse_pretrain -d CTMR -p tiny --for 501 --for_plans myPlans --train_only"
    assert train_command(parsed, {}) == command
    parsed = options("--for", "511", "--own_normalisation", "--ct_intensities", json.dumps(CT))
    words = shlex.split(train_command(parsed, {"ct_intensities": CT}))
    assert options(*words[3:]).own_normalisation
    assert options(*words[3:]).ct_intensities == CT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for_plans", "myPlans"], "belong to --for DATASET"),
        (["--own_normalisation"], "--own_normalisation belongs to --for DATASET"),
        (["--for", "501", "--depths", "2", "2", "--num_heads", "2", "4"], "leave out --depths and --num_heads"),
    ],
)
def test_options_that_do_not_go_together(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["-d", "CTMR", *words])
    assert message in capsys.readouterr().err


def test_ct_intensities_are_those_of_the_only_ct_channel(preprocessed):
    def intensities(*datasets):
        return shared_ct_intensities([read_plan(preprocessed, dataset) for dataset in datasets])

    assert intensities("510", "511", "501") == intensities("511") == CT
    assert intensities("510", "501") is None
    assert intensities("502", "511") is None
    # The second of two channels, as in PET/CT; then both.
    file = preprocessed / "Dataset511_AbdomenCT" / "nnUNetPlans.json"
    content = plans_content(**REAL["Dataset511_AbdomenCT"])
    properties = with_channels(content, "ZScoreNormalization", "CTNormalization", mean=3.0)
    properties["foreground_intensity_properties_per_channel"]["0"] = {}
    file.write_text(json.dumps(properties))
    assert intensities("511") == {**CT, "mean": 3.0}
    file.write_text(json.dumps(with_channels(content, "CTNormalization", "CTNormalization")))
    assert intensities("511") is None
    # Plans without the properties.
    file.write_text(json.dumps({**properties, "foreground_intensity_properties_per_channel": {}}))
    with pytest.raises(InputError, match="cannot be used"):
        intensities("511")
