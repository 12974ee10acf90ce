import pytest

from nnunetv2_swinfuse.inference.model_card import UNSTATED, installation_text, model_card
from nnunetv2_swinfuse.inference.model_description import describe_model

VERSIONS = {"nnunetv2-swinfuse": "0.2.0", "nnunetv2": "2.6.2"}
LICENCES = {"code": "Apache-2.0", "weights": "CC BY 4.0", "data": "CC0"}
TRAINING = {
    "dataset": "Dataset900_Made", "network": "SwinFUSEUNet", "trainer": "T", "configuration": "3d_fullres",
    "folds": ["fold_0", "fold_2"], "checkpoint": "checkpoint_final.pth", "epochs": 7,
}  # fmt: skip


def card(model, scores, words=None, not_measured=None, **training):
    return model_card(
        "Dataset900_Made/a__b__c",
        describe_model(model),
        {**TRAINING, **training},
        scores,
        not_measured or {},
        LICENCES,
        VERSIONS,
        words or {},
    )


def test_what_is_known_is_stated(ct_model):
    scores = {"fold_0": {"mean": {"1": {"Dice": 0.8}}}, "fold_2": {"mean": {"1": {"Dice": 0.9}}}}
    text = card(ct_model, scores, {"intended_use": "Organs."}, pretrained_on="SynthRAD", encoder_sha256="ab12")
    # Two training images with spacings of 3 and 3.3 mm along z.
    for part in ("Organs.", "2 images; licence: CC0", "| 1 | organ |", "3.15 (3-3.3)", "orientation: LPS",
                 "pretrained on SynthRAD, SHA-256 ab12", "nnunetv2 2.6.2", "Not a medical device"):  # fmt: skip
        assert part in text, part
    assert "| organ | 0.800 | 0.900 | 0.850 |" in text
    assert text.count(UNSTATED) == 1


def test_what_is_not_known_is_said(ct_model):
    text = card(ct_model, {}, not_measured={"fold_0": "no validation summary", "fold_2": "no validation summary"})
    assert text.count(UNSTATED) == 2
    assert "Not measured: fold_0, fold_2 (no validation summary)." in text
    assert "not pretrained" in text
    text = card(ct_model, {"fold_0": {}, "fold_2": {"mean": {"1": {"Dice": 0.9}}}})
    assert "| organ | - | 0.900 | 0.900 |" in text
    assert "Not measured" not in text


def test_folds_without_scores_are_named_beside_the_others(ct_model):
    scores = {"fold_0": {"mean": {"1": {"Dice": 0.9}}}}
    text = card(ct_model, scores, not_measured={"fold_2": "validated before"}, checkpoint="checkpoint_best.pth")
    assert "Not measured: fold_2 (validated before)." in text
    assert "| label | fold_0 | mean |" in text
    assert "checkpoint: checkpoint_best.pth" in text


def test_installation_names_versions_and_folds_and_no_index():
    text = installation_text("Dataset900_Made/a__b__c", VERSIONS, TRAINING)
    assert 'pip install "nnunetv2==2.6.2"' in text
    assert "nnunetv2-swinfuse 0.2.0" in text
    assert "$nnUNet_results/Dataset900_Made/a__b__c -f 0 2`" in text
    assert "pip install nnunetv2-swinfuse" not in text
    assert "==0.2.0" not in text


def test_a_second_stage_says_that_it_needs_the_first(ct_model):
    cascade = {**TRAINING, "configuration": "3d_cascade_fullres", "previous_stage": "3d_lowres"}
    text = installation_text("Dataset900_Made/a__b__c", VERSIONS, cascade)
    assert text.count("a__b__c -prev_stage_predictions FIRST_STAGE_MASKS`") == 1
    assert "a__b__c -f 0 2 -prev_stage_predictions FIRST_STAGE_MASKS`" in text
    assert "of the configuration 3d_lowres, predicts for the same images; install and run that model before" in text
    assert "3d_lowres, predicts for the same images." in card(ct_model, {}, previous_stage="3d_lowres")
    assert "stage" not in card(ct_model, {}) + installation_text("Dataset900_Made/a__b__c", VERSIONS, TRAINING)


@pytest.mark.parametrize("line", ["1. ", "2. ", "3. ", "4. ", "5. "])
def test_the_steps_are_numbered(line):
    assert f"\n{line}" in installation_text("Dataset900_Made/a__b__c", VERSIONS, TRAINING)
