import matplotlib.image

from pretraining.analysis.contrast_shift import STRENGTHS, ContrastShift, Similarity
from pretraining.analysis.shift_figure import draw_shifts

from . import synthetic_analysis as synthetic


def shift(layers, registered):
    value = Similarity(0.5, 0.4)
    curves = {layer: [value] * len(STRENGTHS) for layer in layers}
    others = dict.fromkeys(layers, value)
    return ContrastShift(curves, others, others if registered else None)


def test_curves_and_references_of_arms_with_other_layers_are_drawn(tmp_path):
    arms = [synthetic.arm(), synthetic.arm("plain")]
    for registered in (True, False):
        shifts = {"random 0": shift(["embedding", "DIM"], registered), "plain 0": shift(["embedding"], registered)}
        path = draw_shifts(tmp_path / f"{registered}.png", arms, shifts, "MR", "Synthetic")
        assert matplotlib.image.imread(path).std() > 0.01
