"""Model card and installation instructions of an exported model; the template is docs/model_card_template.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunetv2_swinfuse.compatibility import PACKAGE
from nnunetv2_swinfuse.inference.model_description import ModelDescription

MODEL_CARD, INSTALLATION = "MODEL_CARD.md", "INSTALL.md"
UNSTATED = "Not stated by the exporter."


def model_card(
    model: str,
    described: ModelDescription,
    training: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    not_measured: Mapping[str, str],
    licences: Mapping[str, str],
    versions: Mapping[str, str],
    words: Mapping[str, str | None],
) -> str:
    """What the model is for, was trained on and has achieved, in Markdown.

    Args:
        model: `DATASET/TRAINER__PLANS__CONFIGURATION`.
        described: its training images.
        training: as in the manifest.
        scores: nnU-Net's validation summaries (`foreground_mean` and `mean`), by fold.
        not_measured: why there is none, for each of the other folds.
        licences, versions: as in the manifest.
        words: `intended_use` and `limits`, in the exporter's words.
    """
    spacings, extents = described.spacings, described.extents
    channels = ", ".join(f"{number:04d}: {channel.name}" for number, channel in enumerate(described.channels))
    pretrained = training.get("pretrained_on")
    encoder = (
        f"pretrained on {pretrained}, SHA-256 {training.get('encoder_sha256')}" if pretrained else "not pretrained"
    )
    orientations = ", ".join(sorted(described.orientations)) if described.orientations else "not recorded"
    lines = [
        f"# {model}",
        "",
        "**Not a medical device.** For research. Not evaluated or approved for diagnosis or treatment; a mask must be",
        "reviewed by someone who is qualified to do so.",
        "",
        "## Intended use",
        "",
        words.get("intended_use") or UNSTATED,
        "",
        f"Input: {channels}; files end in {described.file_ending}. Output: a mask with the labels below.",
        "",
        "| value | label |",
        "| --- | --- |",
        *(f"| {_value(value)} | {name} |" for name, value in described.labels.items()),
        *_previous_stage(training),
        "",
        "## Training data",
        "",
        f"- {training['dataset']}, {len(spacings)} images; licence: {licences['data']}",
        f"- voxel size (z, y, x), median and range: {_median(spacings)} mm",
        f"- field of view (z, y, x), median and range: {_median(extents)} mm",
        f"- orientation: {orientations}",
        f"- encoder: {encoder}",
        "",
        "## Measured performance",
        "",
        *_performance(described.labels, scores, not_measured),
        "",
        "## Limits",
        "",
        words.get("limits") or UNSTATED,
        "",
        "Images unlike the training data above give unreliable masks. `swinfuse_check` refuses or warns of what it can",
        "see: other modality, spacing, field of view, orientation, damaged files. It cannot see disease, anatomy or",
        "artefacts that the training data lack.",
        "",
        "## Provenance",
        "",
        f"- network: {training['network']}; trainer: {training['trainer']}; configuration: {training['configuration']}",
        f"- folds: {', '.join(training['folds'])}; checkpoint: {training['checkpoint']}; epochs: {training['epochs']}",
        "- versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
        f"- licences: code {licences['code']}; weights {licences['weights']}; data {licences['data']}",
        "",
    ]
    return "\n".join(lines)


def installation_text(model: str, versions: Mapping[str, str], training: Mapping[str, Any]) -> str:
    """From the zip to a mask, for the receiver."""
    dataset, name = model.split("/")
    stage = training.get("previous_stage")
    option = " -prev_stage_predictions FIRST_STAGE_MASKS" if stage else ""
    first = (
        f"""   This model is the second stage of a cascade. FIRST_STAGE_MASKS is the folder of masks that its first
   stage, a model of the configuration {stage}, predicts for the same images; install and run that model before.
"""
        if stage
        else ""
    )
    return f"""# Installation

1. Python 3.10 or newer, then: `pip install "nnunetv2=={versions["nnunetv2"]}"`, and
   {PACKAGE} {versions[PACKAGE]}, which is on no package index: `pip install .` in its checkout, or
   `pip install FILE.whl` with a wheel of it
2. Choose a folder for models: `export nnUNet_results=/path/to/models`
3. `swinfuse_verify MODEL.zip`, and compare the SHA-256 it prints with the one its publisher names.
4. `nnUNetv2_install_pretrained_model_from_zip MODEL.zip`
5. `swinfuse_predict -i IMAGES -o MASKS -m $nnUNet_results/{dataset}/{name}{option}`
{first}
Stock nnU-Net runs it too, without the checks: `nnUNetv2_predict_from_modelfolder -i IMAGES -o MASKS -m
$nnUNet_results/{dataset}/{name} -f {" ".join(fold.removeprefix("fold_") for fold in training["folds"])}{option}`

No step after 1 needs a network. Without one: `pip wheel . -w FOLDER` in the checkout on another machine, then
`pip install --no-index --find-links FOLDER FOLDER/nnunetv2_swinfuse-*.whl`.
"""


def _previous_stage(training: Mapping[str, Any]) -> list[str]:
    stage = training.get("previous_stage")
    if not stage:
        return []
    return [
        "",
        "The second stage of a cascade: it also needs the masks that its first stage, a model of the configuration",
        f"{stage}, predicts for the same images.",
    ]


def _performance(
    labels: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]], not_measured: Mapping[str, str]
) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for fold, reason in not_measured.items():
        reasons.setdefault(reason, []).append(fold)
    lines = [f"Not measured: {', '.join(folds)} ({reason})." for reason, folds in reasons.items()]
    if not scores:
        return lines
    lines += [
        *([""] if lines else []),
        "Dice of each fold on its validation images, which it was not trained on; mean over images, then over folds.",
        "",
        f"| label | {' | '.join(scores)} | mean |",
        f"| --- |{' --- |' * (len(scores) + 1)}",
    ]
    for name, value in labels.items():
        if name in ("background", "ignore"):
            continue
        key = str(tuple(value)) if isinstance(value, list) else str(value)
        dice = [summary.get("mean", {}).get(key, {}).get("Dice") for summary in scores.values()]
        known = [float(score) for score in dice if isinstance(score, (int, float))]
        cells = [f"{score:.3f}" if isinstance(score, (int, float)) else "-" for score in dice]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{np.nanmean(known):.3f}' if known else '-'} |")
    return lines


def _median(rows: np.ndarray) -> str:
    numbers = zip(np.median(rows, 0), rows.min(0), rows.max(0), strict=True)
    return " x ".join(f"{median:.4g} ({low:.4g}-{high:.4g})" for median, low, high in numbers)


def _value(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)
