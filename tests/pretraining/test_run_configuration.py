import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.options import build_parser, check_options
from pretraining.preset_files import load_preset
from pretraining.run_configuration import new_configuration, resumed_configuration, run_folder

from .nnunet_plans import CT, REAL, plans_content, with_channels, write_plans
from .synthetic import tiny


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    write_plans(tmp_path)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return tmp_path


def options(*words):
    parsed = build_parser().parse_args(["-d", "CTMR", *words])
    check_options(parsed)
    return parsed


def test_the_command_line_takes_sizes_from_plans_and_its_own_settings_win(preprocessed, capsys):
    parsed = options("-p", "tiny", "--for", "501", "--crop_size", "24", "24", "24")
    configuration = new_configuration(parsed, {"crop_size": [24, 24, 24]})
    assert configuration.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert configuration.crop_size == (24, 24, 24)
    assert configuration.spacing == (1, 1, 1)
    assert configuration.steps == load_preset("tiny")["steps"]
    assert "For Dataset501_Hippocampus (nnUNetPlans, 3d_fullres): strides [[1, 1, 1], [2" in capsys.readouterr().out
    both = options("-p", "tiny", "--for", "501", "502", "--spacing", "2", "2", "2")
    assert new_configuration(both, {"spacing": [2, 2, 2]}).spacing == (2, 2, 2)


def test_ct_is_normalised_as_the_only_ct_dataset(preprocessed, capsys):
    def intensities(*words, **overrides):
        return new_configuration(options("-p", "tiny", *words), overrides).ct_intensities

    assert intensities("--for", "510", "511") == intensities("--for", "511", "--for_configuration", "3d_lowres") == CT
    assert '"std": 43.5' in capsys.readouterr().out
    assert intensities("--for", "510", "511", "--own_normalisation") is None
    assert intensities("--for", "510") is intensities() is None
    other = {**CT, "mean": 1.0}
    assert intensities("--for", "511", ct_intensities=other) == other
    assert "channels are CT" not in capsys.readouterr().out
    second = with_channels(plans_content(**REAL["Dataset503_BrainMR"]), "CTNormalization")
    (preprocessed / "Dataset503_BrainMR" / "nnUNetPlans.json").write_text(json.dumps(second))
    assert intensities("--for", "502", "503", spacing=[3, 3, 3]) is None
    assert "--for: 2 channels are CT; CT is normalised with the intensities of the coll" in capsys.readouterr().out


def test_runs_for_datasets_have_folders_of_their_own():
    assert run_folder("tiny", "swinfuse", ["501", "Dataset502_HeadNeckCT"]) == "swinfuse__tiny_for_501_502"
    assert run_folder("tiny", "resenc", ["501"]) == "swinfuse__tiny_resenc_for_501"
    assert run_folder("tiny", "swinfuse") == "swinfuse__tiny"


def test_a_resumed_run_takes_only_settings_that_do_not_change_the_result(tmp_path):
    saved = tiny(workers=1)
    assert resumed_configuration(saved, {"workers": 3}, tmp_path) == tiny(workers=3)
    with pytest.raises(InputError, match=r"--c cannot resume with other settings \(seed: 0 in the run, 7 now\)"):
        resumed_configuration(saved, {"workers": 3, "seed": 7}, tmp_path)
