import json

import pytest

from pretraining.analysis.command import build_parser, main
from pretraining.checkpoint import export_encoder
from pretraining.model import PretrainingModel

from ..synthetic import synthetic_collection, tiny
from ..voxel_probe import synthetic_labelled

pytestmark = pytest.mark.slow

NORMALISATION = {"ct": {"mean": 0.0, "std": 100.0, "percentile_00_5": -500.0, "percentile_99_5": 500.0}}
SMALL = ["--crop", "16", "16", "16", "--crops", "4", "--tokens", "64", "--random_seeds", "1"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    root = tmp_path_factory.mktemp("analysis")
    collection = synthetic_collection(root, patients=4)
    synthetic_labelled.write_dataset(root / "raw", 510, cases=4)
    synthetic_labelled.write_dataset(root / "raw", 511, cases=4, modality="CT", names=("spleen", "liver"))
    for name, changes in (("ours", {}), ("plain", {"dim": "none"})):
        configuration = tiny(**changes).for_spacing(collection.spacing)
        export_encoder(
            PretrainingModel(configuration), configuration, {"name": "SynthRAD", "hash": "h"}, collection.spacing,
            root / f"{name}.pth", NORMALISATION,
        )  # fmt: skip
    return root


@pytest.fixture
def run(workplace, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("nnUNet_raw", str(workplace / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(workplace / "preprocessed"))

    def call(check, encoder, *words):
        encoders = [f"{encoder}={workplace / encoder}.pth"] if encoder else []
        main([check, *encoders, "--output", str(tmp_path / "out"), *SMALL, *words])
        return json.loads((tmp_path / "out" / f"{check}.json").read_text())

    return call


def refused(run, capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_check_of_a_collection_records_its_images(run, capsys):
    record = run("attention", "ours", "-c", "SynthRAD", "--split", "all")
    assert record["images"]["collection"] == "SynthRAD"
    assert record["images"]["patients"] == {"CT": 4, "MR": 4}
    assert [(arm["name"], arm["floor"]) for arm in record["encoders"]] == [("random", "random"), ("ours", "random")]
    assert record["results"]["ours"]["registered"]["difference"] is not None
    assert "\n| ours " in capsys.readouterr().out


def test_labelled_datasets_have_an_organ_probe_in_both_directions(run):
    record = run("features", "plain", "-d", "510", "511", "--labelled", "2", "--without_projections")
    organs = record["results"]["plain 0"]["stage 1"]["organs"]
    assert [(score["fitted"], score["tested"]) for score in organs] == [
        ("510", "510"), ("510", "511"), ("511", "511"), ("511", "510"),
    ]  # fmt: skip
    assert record["results"]["plain 0"]["stage 1"]["cka"] is None
    assert record["images"]["datasets"] == ["Dataset510_Tiny", "Dataset511_Tiny"]


def test_organs_of_another_encoder_with_the_name_are_computed_again_if_asked_for(run, workplace, capsys, tmp_path):
    words = ["-d", "510", "511", "--labelled", "2", "--without_projections"]
    run("features", "plain", *words)
    table = tmp_path / "out" / "organ_probe.csv"
    lines = [line.rpartition(",")[0] + ",other" for line in table.read_text().splitlines()[1:]]
    table.write_text("\n".join([table.read_text().splitlines()[0], *lines]) + "\n")
    assert "compute them again with --overwrite" in refused(run, capsys, "features", "plain", *words)
    run("features", "plain", *words, "--overwrite")
    assert ",other" not in table.read_text()


def test_labelled_images_at_another_spacing_than_an_encoders_are_refused(workplace, run, capsys):
    synthetic_labelled.write_encoder(workplace / "coarse.pth", (9.0, 9.0, 9.0))
    words = ["-c", "SynthRAD", "-d", "510", "511", "--without_projections"]
    message = refused(run, capsys, "features", "coarse", *words)
    assert "coarse: pretrained at 9 x 9 x 9 mm, but SynthRAD has" in message


def test_an_encoder_without_the_module_has_no_attention(run, capsys):
    message = refused(run, capsys, "attention", "plain", "-c", "SynthRAD", "--split", "all")
    assert "plain 0: no Domain Invariance Module" in message


def test_a_split_without_pairs_is_refused(run, capsys):
    assert "--split all" in refused(run, capsys, "attention", "ours", "-c", "SynthRAD")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["density", "ours"], "name a preprocessed collection with -c"),
        (["features", "ours"], "or two labelled datasets with -d"),
        (["features", "", "-c", "SynthRAD", "--split", "all"], "no encoder: name a run"),
        (["contrast", "ours", "-c", "Nothing"], "available: SynthRAD"),
        (
            ["contrast", "ours", "-c", "SynthRAD", "--split", "all", "--crop", "16", "16", "18"],
            "divisible by 4 x 4 x 4",
        ),
        (["contrast", "ours", "-c", "SynthRAD", "--crops", "2"], "4 crops of each domain or more"),
        (["contrast", "missing", "-c", "SynthRAD"], "missing.pth: no such file"),
        (["density", "ours", "-c", "SynthRAD", "--split", "all", "--layer", "stage 9"], "'stage 9'; expected one of"),
        (["attention", "ours", "-c", "SynthRAD", "--split", "all", "--pair", "4"], "counted from 0"),
    ],
)
def test_bad_input_is_refused_by_name(run, capsys, words, message):
    assert message in refused(run, capsys, *words)


def test_runs_are_compared(workplace, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "configuration.json").write_text(json.dumps({"recipe": "none", "steps": 0}))
    main(["runs", f"start={folder}", "--output", str(tmp_path / "out")])
    row = capsys.readouterr().out.splitlines()[2]
    assert [cell.strip() for cell in row.split("|")[1:4]] == ["start", "1", "none"]
    with pytest.raises(SystemExit):
        main(["runs", f"start={folder}", "--probe", str(tmp_path / "no.csv"), "--output", str(tmp_path / "out")])
    assert "no.csv: no such file" in capsys.readouterr().err


def test_every_check_explains_itself():
    assert "contrast" in build_parser().format_help()
