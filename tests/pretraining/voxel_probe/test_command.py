import json

import pytest

from pretraining.voxel_probe.command import build_parser, labelled_cases, main, make_plan
from pretraining.voxel_probe.results import Key, Row

from . import synthetic_labelled as synthetic


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    synthetic.write_dataset(tmp_path / "raw", 501, cases=4)
    synthetic.write_dataset(tmp_path / "raw", 511, cases=4, modality="CT", names=("spleen", "liver"))
    return synthetic.write_encoder(tmp_path / "encoder.pth")


def run(encoder, *more, encoders=()):
    output = encoder.parent / "out" / "probe.csv"
    words = [
        f"ours={encoder}",
        *encoders,
        "-d",
        "501",
        "--labelled",
        "2",
        "--random_seeds",
        "2",
        "--output",
        str(output),
        *more,
    ]
    main(words)
    return output


@pytest.mark.slow
def test_all_arms_are_measured_and_resumed(encoder, capsys):
    output = run(encoder, "--test_on", "511")
    table = capsys.readouterr().out
    assert "501 -> 511" in table
    assert all(arm in table for arm in ("random", "ours", "handmade", "coordinates"))
    record = json.loads(output.with_suffix(".json").read_text())
    assert len(record["splits"]["0"]["501"]["test"]) == 2
    assert [arm["arm"] for arm in record["arms"]] == ["random", "random", "ours", "handmade", "coordinates"]
    before = output.read_text()
    run(encoder, "--test_on", "511")
    assert output.read_text() == before


def test_two_arms_are_compared(encoder, capsys):
    output = run(encoder, "--compare", "ours", "random", "--controls", "random")
    measured = capsys.readouterr().out
    assert "ours minus random" in measured
    # Again from the table, without the encoder; what the rows were computed from stays recorded.
    record = output.with_suffix(".json").read_text()
    words = ("-d", "501", "--labelled", "2", "--controls", "--output", str(output))
    main([*words, "--compare", "ours", "random"])
    assert capsys.readouterr().out.split("ours minus random")[1].split("\n\n")[0] in measured
    assert output.with_suffix(".json").read_text() == record


def test_random_encoders_with_larger_weights_are_a_control(encoder, capsys):
    output = run(encoder, "--controls", "random", "xavier", "--compare", "xavier", "random")
    assert "xavier minus random" in capsys.readouterr().out
    record = json.loads(output.with_suffix(".json").read_text())
    assert [arm["arm"] for arm in record["arms"]] == ["random"] * 2 + ["xavier"] * 2 + ["ours"]
    assert record["floors"] == {"xavier": "random", "ours": "random"}


def test_an_unknown_arm_to_compare_is_refused_before_anything_is_measured(encoder, capsys):
    with pytest.raises(SystemExit):
        run(encoder, "--compare", "ours", "theirs")
    error = capsys.readouterr().err
    assert "no arm is called theirs; there are coordinates, handmade, ours, random" in error
    assert not (encoder.parent / "out").exists()


def test_labelled_cases_of_every_split_in_the_table(encoder, tmp_path):
    cases = [f"Tiny_{number}" for number in range(4)]
    splits = {f"2_labels__seed_{seed}__fold_0": {"train": cases[seed : seed + 2], "val": [cases[3]]} for seed in (0, 1)}
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"Dataset501_Tiny": splits}))
    names = {path.name.split("_0000")[0] for path in (tmp_path / "raw" / "Dataset501_Tiny" / "imagesTr").iterdir()}
    file.write_text(file.read_text().replace("Tiny_", sorted(names)[0][:-1]))
    options = build_parser().parse_args(["-d", "501", "--splits", str(file)])
    rows = [Row(Key("a", s, "501", "501", 2, s), "c", "liver", "dice", 0.5, "x") for s in (0, 1)]
    found = labelled_cases(options, make_plan(options, tmp_path / "raw"), rows)
    expected = sorted(names)
    assert found == {("501", 2): {0: frozenset(expected[:2]), 1: frozenset(expected[1:3])}}
