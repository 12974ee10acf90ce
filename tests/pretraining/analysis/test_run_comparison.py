import json

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from nnunetv2_swinfuse.errors import InputError
from pretraining.analysis import run_comparison
from pretraining.analysis.figures import GREY
from pretraining.analysis.run_comparison import (
    draw_comparison,
    group_runs,
    health_summary,
    make_table,
    probe_summaries,
    read_run,
)
from pretraining.voxel_probe.results import Key, Row


def write_run(folder, cka=0.5, weight=1.0, validated=True):
    folder.mkdir(parents=True)
    settings = {"recipe": "swinfuse", "steps": 8, "density_weight": weight, "modalities": ["CT", "MR"]}
    (folder / "configuration.json").write_text(json.dumps(settings))
    (folder / "run.json").write_text(json.dumps({"data": {"volumes for train": "24 CT, 16 MR, 3 pairs"}}))
    records = [{"step": 4, "kind": "validation", "cka": 0.0}, {"step": 8, "kind": "validation", "cka": cka}]
    records += [{"step": 8, "kind": "train", "cka": 9.0}]
    text = "".join(json.dumps(record) + "\n" for record in records if validated or record["kind"] == "train")
    (folder / "losses.jsonl").write_text(text)
    return folder


def rows(arm, value, seed=0, split=0):
    key = Key(arm, seed, "510", "510", 4, split)
    return [Row(key, f"case{number}", "liver", "dice", value + 0.01 * number, "x") for number in range(4)]


def test_the_last_validation_counts(tmp_path):
    run = read_run(f"ours={write_run(tmp_path / 'a')}")
    assert (run.name, run.step, run.volumes) == ("ours", 8, 40)
    assert run.health["cka"] == 0.5
    assert run.position("density_weight") == 1.0
    assert run.position("volumes") == 40
    with pytest.raises(InputError, match=r"recipe is 'swinfuse'.*a number"):
        run.position("recipe")


def test_runs_of_one_name_are_seeds_of_one_arm(tmp_path):
    runs = [read_run(f"ours={write_run(tmp_path / name, cka)}") for name, cka in (("a", 0.25), ("b", 0.75))]
    arms = group_runs([*runs, read_run(str(write_run(tmp_path / "other")))])
    assert list(arms) == ["ours", "other"]
    assert health_summary(arms["ours"])["cka"] == {"mean": 0.5, "interval": pytest.approx((-2.677, 3.677), abs=1e-3),
                                                   "runs": [0.25, 0.75]}  # fmt: skip


def test_no_run_and_a_run_without_validation_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"configuration.json.*expected a run"):
        read_run(str(tmp_path))
    with pytest.raises(InputError, match="no validation"):
        read_run(str(write_run(tmp_path / "a", validated=False)))


def test_the_table_has_health_and_the_probe_minus_random(tmp_path):
    arms = group_runs([read_run(f"ours={write_run(tmp_path / 'a')}")])
    probes = probe_summaries([*rows("random", 0.4), *rows("random", 0.5, 1), *rows("ours", 0.65)], {"ours": "random"})
    assert list(probes) == ["510, 4 labelled"]
    summary = probes["510, 4 labelled"]["ours"]
    assert summary.difference == pytest.approx(0.2)
    assert summary.difference_interval == (pytest.approx(0.2), pytest.approx(0.2))
    header, _, ours, random = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in make_table(arms, probes).splitlines()
    )
    assert "cka" in header
    assert ours[:6] == ["ours", "1", "swinfuse", "8", "40", "0.500"]
    assert ours[-1].startswith("0.665 (+0.200")
    assert (random[0], random[-1]) == ("random", "0.465")
    assert len(header) == len(ours) == len(random)


def test_seeds_count_with_their_own_split_and_the_interval_covers_them():
    gains = [0.1, 0.2, 0.3]
    table = [
        row
        for seed in range(3)
        for split in range(3)
        for row in rows("random", 0.4 + 0.1 * (seed != split), seed, split)
    ]
    table += [row for seed, gain in enumerate(gains) for row in rows("ours", 0.4 + gain, seed, split=seed)]
    probes = probe_summaries(table, {"ours": "random"})
    assert list(probes) == ["510, 4 labelled"]
    of_arms = probes["510, 4 labelled"]
    assert of_arms["random"].mean == pytest.approx(0.415)
    assert of_arms["random"].difference is None
    assert of_arms["ours"].difference == pytest.approx(0.2)
    # The gains differ by seed only: Student's t with 2 degrees of freedom over three seeds.
    half = stats.t.ppf(0.975, 2) * np.std(gains, ddof=1) / 3**0.5
    assert of_arms["ours"].difference_interval == pytest.approx((0.2 - half, 0.2 + half), rel=1e-6)


def test_splits_with_the_same_labelled_cases_are_one_run():
    gains = [0.1, 0.1, 0.2, 0.4]
    table = [row for seed in range(4) for row in rows("random", 0.4, seed, split=seed)]
    table += [row for seed, gain in enumerate(gains) for row in rows("ours", 0.4 + gain, seed, split=seed)]
    labelled = {("510", 4): {0: "xy", 1: "xy", 2: "yz", 3: "xz"}}
    summary = probe_summaries(table, {"ours": "random"}, labelled)["510, 4 labelled"]["ours"]
    runs = [0.1, 0.2, 0.4]
    half = stats.t.ppf(0.975, 2) * np.std(runs, ddof=1) / 3**0.5
    assert summary.difference == pytest.approx(np.mean(runs))
    assert summary.difference_interval == pytest.approx((np.mean(runs) - half, np.mean(runs) + half), rel=1e-6)


def test_other_architectures_have_random_encoders_of_their_own():
    table = [*rows("random", 0.4), *rows("random as other", 0.2), *rows("ours", 0.5), *rows("other", 0.5)]
    (of_arms,) = probe_summaries(table, {"ours": "random", "other": "random as other"}).values()
    assert of_arms["ours"].difference == pytest.approx(0.1)
    assert of_arms["other"].difference == pytest.approx(0.3)


def test_runs_are_drawn_side_by_side_and_along_a_setting(tmp_path):
    words = [f"w{weight}={write_run(tmp_path / str(weight), weight=weight)}" for weight in (0.1, 1.0)]
    arms = group_runs([read_run(word) for word in words])
    probes = probe_summaries(
        [*rows("random", 0.4), *rows("w0.1", 0.6), *rows("w1.0", 0.5)], dict.fromkeys(arms, "random")
    )
    for over in (None, "density_weight"):
        path = draw_comparison(tmp_path / "c.png", arms, probes, over)
        assert matplotlib.image.imread(path).std() > 0.01


def test_each_arm_is_drawn_with_the_random_encoders_of_its_architecture(tmp_path, monkeypatch):
    arms = group_runs([read_run(f"{name}={write_run(tmp_path / name)}") for name in ("swin", "resenc")])
    table = [*rows("swin", 0.6), *rows("resenc", 0.5), *rows("random", 0.4), *rows("random as resenc", 0.2)]
    probes = probe_summaries(table, {"swin": "random", "resenc": "random as resenc"})
    figures = []
    monkeypatch.setattr(run_comparison, "save", lambda figure, path: figures.append(figure))
    draw_comparison(tmp_path / "c.png", arms, probes, None)
    floors = [line.get_xydata()[0] for line in figures[0].axes[0].lines if line.get_color() == GREY]
    # Means over four cases, which differ by 0.01.
    np.testing.assert_allclose(floors, [[0, 0.415], [1, 0.215]])


def test_seeds_of_one_arm_have_one_place(tmp_path):
    words = [f"same={write_run(tmp_path / str(weight), weight=weight)}" for weight in (0.1, 1.0)]
    arms = group_runs([read_run(word) for word in words])
    with pytest.raises(InputError, match="same: runs with density_weight"):
        draw_comparison(tmp_path / "c.png", arms, {}, "density_weight")
