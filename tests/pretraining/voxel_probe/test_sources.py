import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.voxel_probe.command import build_parser
from pretraining.voxel_probe.sources import make_sources

from .synthetic_labelled import write_encoder


def sources_of(tmp_path, *words):
    return make_sources(build_parser().parse_args([*map(str, words), "-d", "501"]), tmp_path / "preprocessed")


def test_every_architecture_has_random_encoders_of_its_own(tmp_path):
    ours, plain = (write_encoder(tmp_path / f"{dim}.pth", dim=dim) for dim in ("co_attention", "none"))
    words = (f"ours={ours}", f"plain={plain}", "--random_seeds", 2, "--controls", "random", "xavier", "handmade")
    sources, floors = sources_of(tmp_path, *words)
    assert [(source.name, source.seed) for source in sources] == [
        *[("random", 0), ("random", 1), ("xavier", 0), ("xavier", 1), ("ours", 0)],
        *[("random as plain", 0), ("random as plain", 1), ("xavier as plain", 0), ("xavier as plain", 1)],
        *[("plain", 0), ("handmade", 0)],
    ]
    assert floors == {
        **{"ours": "random", "xavier": "random", "handmade": "random"},
        **{"plain": "random as plain", "xavier as plain": "random as plain"},
    }


def test_arms_are_measured_on_the_same_voxels(tmp_path):
    fine, coarse = write_encoder(tmp_path / "fine.pth"), write_encoder(tmp_path / "coarse.pth", (2.0, 1.0, 1.0))
    with pytest.raises(InputError, match="coarse: pretrained at another spacing than fine"):
        sources_of(tmp_path, f"fine={fine}", f"coarse={coarse}")
    sources, _ = sources_of(tmp_path, f"fine={fine}", f"coarse={coarse}", "--spacing", 3, 2, 2)
    assert {source.normalisation.spacing for source in sources} == {(3.0, 2.0, 2.0)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--controls"], "nothing to do"),
        (["--controls", "random"], "no encoder: name a run"),
        (["-p", "tiny"], "name a preprocessed collection with --collection"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        sources_of(tmp_path, *words)


def test_two_runs_of_one_name_and_seed_are_refused(tmp_path):
    encoder = write_encoder(tmp_path / "encoder.pth")
    with pytest.raises(InputError, match=r"several encoders are ours, seed 0.*NAME=PATH"):
        sources_of(tmp_path, f"ours={encoder}", f"ours={encoder}")
