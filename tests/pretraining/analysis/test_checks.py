import json

import pytest

from pretraining.analysis.checks import Context, check_attention, check_contrast, check_density, check_features

from . import synthetic_analysis as synthetic

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arms():
    return [synthetic.arm(seed=0), synthetic.arm(seed=1), synthetic.arm("ours", 5)]


def context(arms, output, **changes):
    return Context(arms, synthetic.crop_sets(**changes), output, ["words"], 0, 64, ["a note"])


def results(output, check):
    return json.loads((output / f"{check}.json").read_text())["results"]


def test_attention_is_compared_with_random_encoders_patient_by_patient(arms, tmp_path):
    table = check_attention(context(arms, tmp_path), 1)
    assert "registered minus random" in table
    found = results(tmp_path, "attention")
    ours, random = found["ours"]["registered"], found["random"]["registered"]
    assert ours["difference"] == pytest.approx(ours["mean"] - random["mean"], abs=1e-5)
    assert random["difference"] is None
    assert len(random["seeds"]) == 2
    minus = found["ours"]["registered minus unregistered"]["mean"]
    assert minus == pytest.approx(ours["mean"] - found["ours"]["unregistered"]["mean"], abs=1e-5)
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"attention_random_0.png", "attention_ours_5.png", "attention_differences.png"}


def test_the_same_image_twice_is_no_gap(arms, tmp_path):
    check_features(context(arms, tmp_path, count=8, patients=8, same=True), False, None)
    for layers in results(tmp_path, "features").values():
        assert list(layers) == ["embedding", "DIM", "stage 0", "stage 1"]
        for gap in layers.values():
            assert gap["cka"] == pytest.approx(1, abs=1e-4)
            assert gap["mmd"] == pytest.approx(0, abs=1e-4)
    assert (tmp_path / "features.png").is_file()


def test_projections_have_a_picture_for_each_layer(arms, tmp_path):
    check_features(context(arms[:1], tmp_path, labels=True), True, None)
    names = {path.name for path in tmp_path.glob("features_*.png")}
    assert names == {f"features_{layer}.png" for layer in ("embedding", "DIM", "stage_0", "stage_1")}


def test_the_density_estimate_is_of_the_module_unless_a_layer_is_named(arms, tmp_path, monkeypatch):
    monkeypatch.setattr("pretraining.analysis.checks.TOKENS", (32, 64))
    table = check_density(context(arms[:1], tmp_path), None)
    assert "random 0, DIM" in table
    assert set(results(tmp_path, "density")["random 0, DIM"]) == {"by_bandwidth", "by_tokens"}
    assert "random 0, stage 1" in check_density(context(arms[:1], tmp_path), "stage 1")


def test_contrasts_start_at_the_image_itself(arms, tmp_path):
    check_contrast(context(arms[:1], tmp_path), 1)
    features = results(tmp_path, "contrast")["features"]
    assert set(features) == {"CT", "MR"}
    for layer in features["CT"]["random 0"]["by_strength"].values():
        assert layer[0]["cka"] == pytest.approx(1, abs=1e-4)
        assert layer[-1]["cosine"] < 1
    assert {path.name for path in tmp_path.glob("*.png")} == {"contrast_CT.png", "contrast_MR.png"}
