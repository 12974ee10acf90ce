import sys

import matplotlib.image
import numpy as np
import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.analysis.projections import draw_projections, project, require_scikit_learn

from . import synthetic_analysis as synthetic


@pytest.fixture(scope="module")
def separated():
    return project(synthetic.layer_tokens(0), synthetic.layer_tokens(1, shift=6.0))


@pytest.mark.slow
def test_separated_domains_are_apart_in_both_projections(separated):
    for points in (separated.pca, separated.tsne):
        first, second = (points[separated.domain == domain] for domain in (0, 1))
        within = np.linalg.norm(first - first.mean(0), axis=1).mean()
        assert np.linalg.norm(first.mean(0) - second.mean(0)) > 1.5 * within


@pytest.mark.slow
def test_the_seed_is_fixed(separated):
    again = project(synthetic.layer_tokens(0), synthetic.layer_tokens(1, shift=6.0))
    assert np.array_equal(separated.tsne, again.tsne)
    assert np.array_equal(separated.pca, again.pca)


@pytest.mark.slow
def test_rows_keep_their_patient(separated):
    assert sorted(np.unique(separated.patient)) == list(range(8))
    assert [int((separated.patient == number).sum()) for number in range(8)] == [64] * 8


@pytest.mark.slow
def test_projections_are_drawn_with_organs(tmp_path, separated):
    classes = separated._replace(classes=separated.patient % 3)
    organs = {1: "liver", 2: "spleen"}
    encoders = {"random 0": classes, "ours 0": classes}
    path = draw_projections(tmp_path / "p.png", encoders, ("CT", "MR"), organs, "Synthetic")
    assert matplotlib.image.imread(path).std() > 0.01


def test_a_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r'pip install "\.\[analysis\]".*--without_projections'):
        require_scikit_learn()
