import matplotlib.image

from pretraining.analysis.domain_gap import DomainGap
from pretraining.analysis.gap_figure import draw_gaps, panels_of
from pretraining.analysis.layer_probe import OrganScore

from . import synthetic_analysis as synthetic


def gap(cka=None, organs=(), divergence=0.5):
    registered = dict.fromkeys(("cka", "cka_other_patient", "icc", "icc_other_patient", "cka_crops"), cka)
    values = DomainGap(divergence, floor=0.1, mmd=0.2, probe_accuracy=0.6, rank=0.9, deviation=0.8, **registered)
    return {**values._asdict(), "organs": list(organs)}


def test_only_what_was_measured_is_drawn():
    unregistered = panels_of({"ours 0": {"DIM": gap()}}, ("A", "B"))
    assert not any("CKA" in panel.title or "ICC" in panel.title for panel in unregistered)
    scores = [OrganScore("510", "510", 4, 0.7, 0.9), OrganScore("510", "511", 4, 0.2, 0.8)]
    panels = panels_of({"ours 0": {"DIM": gap(0.3, scores)}}, ("510 (MR)", "511 (CT)"))
    values = {panel.title: panel.values["ours 0"]["DIM"] for panel in panels}
    assert values["organ probe: 510, 4 labelled"] == 0.7
    assert values["organ probe: 510 to 511, 4 labelled"] == 0.2
    assert values["JSD / ln 2, above its floor"] == 0.4
    assert values["debiased CKA, registered tokens"] == values["ICC, another patient's"] == 0.3
    assert values["linear probe: 510 (MR) or 511 (CT)?"] == 0.6


def test_arms_with_other_layers_are_drawn_together(tmp_path):
    arms = [synthetic.arm(), synthetic.arm("ours"), synthetic.arm("plain")]
    results = {
        "random 0": {"embedding": gap(), "DIM": gap()}, "ours 0": {"embedding": gap(), "DIM": gap()},
        "plain 0": {"embedding": gap()},
    }  # fmt: skip
    path = draw_gaps(tmp_path / "g.png", arms, results, ("CT", "MR"), "Synthetic")
    assert matplotlib.image.imread(path).std() > 0.01
