"""Tokens in two dimensions: PCA and t-SNE, coloured by domain, patient and organ, for several encoders side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.analysis.figures import GREY, MARKERS, colour_of, marker_of, new_figure, save
from pretraining.analysis.tokens import LayerTokens

SEED = 0
# t-SNE's default; fewer where there are few tokens.
PERPLEXITY = 30
# Tokens of each domain that are drawn.
TOKENS = 300


class Projected(NamedTuple):
    """Tokens of both domains in two dimensions, row by row.

    Attributes:
        pca, tsne: float (N, 2).
        domain: 0 or 1 (N,).
        patient: index of the patient (N,).
        classes: (N,), 0 for background; None without labels.
    """

    pca: np.ndarray
    tsne: np.ndarray
    domain: np.ndarray
    patient: np.ndarray
    classes: np.ndarray | None


def require_scikit_learn() -> None:
    """Raises InputError, saying what to install, if scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'PCA and t-SNE need scikit-learn ({error}). Install the extra: pip install ".[analysis]" in a checkout, '
            "or leave the pictures out with --without_projections"
        ) from error


def project(first: LayerTokens, second: LayerTokens) -> Projected:
    """Projects tokens that show tissue, channels standardised with the statistics of both domains.

    Args:
        first, second: tokens of one layer.

    Raises:
        InputError: if scikit-learn is missing.
    """
    require_scikit_learn()
    # scikit-learn takes seconds to import.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    names = sorted({*first.patients, *second.patients})
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for number, side in enumerate((first, second)):
        chosen = side.mask.nonzero()[:, 0]
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(SEED))[:TOKENS]]
        crop = (chosen // side.tokens.shape[1]).tolist()
        classes = torch.zeros(0) if side.classes is None else side.classes.flatten()[chosen]
        of_side = (side.flat[chosen], torch.full_like(chosen, number), classes)
        for part, values in zip(parts, of_side, strict=False):
            part.append(values.numpy())
        parts[3].append(np.array([names.index(side.patients[index]) for index in crop], np.int64))
    tokens, domain, labels, patient = (np.concatenate(part) for part in parts)
    deviation = tokens.std(0)
    tokens = (tokens - tokens.mean(0)) / np.where(deviation > 1e-6, deviation, 1)
    perplexity = min(PERPLEXITY, (len(tokens) - 1) / 3)
    return Projected(
        PCA(2, random_state=SEED).fit_transform(tokens),
        TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(tokens),
        domain,
        patient,
        labels if len(labels) else None,
    )


def draw_projections(
    path: Path, projected: Mapping[str, Projected], names: tuple[str, str], classes: Mapping[int, str], title: str
) -> Path:
    """Draws a column for each encoder; rows: PCA by domain, t-SNE by domain, by patient, and by organ if known.

    Args:
        path: the PNG to write.
        projected: tokens of one layer, by encoder.
        names: of the domains.
        classes: names of the organs by value.
        title: of the picture.
    """
    rows = ["PCA, by domain", "t-SNE, by domain", "t-SNE, by patient", *(["t-SNE, by organ"] if classes else [])]
    figure, axes = new_figure(len(rows), len(projected), 3.4, 3.0)
    for column, (name, tokens) in enumerate(projected.items()):
        axes[0, column].set_title(name, fontsize=11)
        _by_domain(axes[0, column], tokens.pca, tokens.domain, names)
        _by_domain(axes[1, column], tokens.tsne, tokens.domain, names)
        _by_patient(axes[2, column], tokens)
        if classes:
            _by_class(axes[3, column], tokens, classes)
    for row, row_name in enumerate(rows):
        axes[row, 0].set_ylabel(row_name, fontsize=10)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for row in (1, *([3] if classes else [])):
        handles, labels = axes[row, -1].get_legend_handles_labels()
        axes[row, -1].legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, markerscale=2)
    patients = len(np.unique(next(iter(projected.values())).patient))
    axes[2, -1].text(
        1.04, 0.5, f"{patients} patients:\ncolour and marker\nof each;\nfilled: {names[0]},\nopen: {names[1]}",
        transform=axes[2, -1].transAxes, fontsize=8, va="center",
    )  # fmt: skip
    figure.suptitle(fill(title, 45 * len(projected)), fontsize=11)
    return save(figure, path)


def _by_domain(axis: Any, points: np.ndarray, domain: np.ndarray, names: Sequence[str]) -> None:
    # In random order, so that no domain hides the other.
    order = np.random.default_rng(SEED).permutation(len(points))
    colours = np.array([colour_of(0), colour_of(1)])[domain[order]]
    axis.scatter(*points[order].T, c=colours, s=7, linewidths=0, alpha=0.8)
    for number, name in enumerate(names):
        axis.scatter([], [], c=colour_of(number), s=7, label=name)


def _by_patient(axis: Any, tokens: Projected) -> None:
    for number in np.unique(tokens.patient):
        for domain in (0, 1):
            points = tokens.tsne[(tokens.patient == number) & (tokens.domain == domain)]
            colour = colour_of(int(number))
            axis.scatter(
                *points.T, s=10, marker=marker_of(int(number)), facecolors=colour if domain == 0 else "none",
                edgecolors=colour, linewidths=0.6,
            )  # fmt: skip


def _by_class(axis: Any, tokens: Projected, classes: Mapping[int, str]) -> None:
    assert tokens.classes is not None
    background = tokens.tsne[tokens.classes == 0]
    axis.scatter(*background.T, c=GREY, s=5, linewidths=0, alpha=0.4, label="background")
    for number, (value, name) in enumerate(classes.items()):
        points = tokens.tsne[tokens.classes == value]
        axis.scatter(*points.T, c=colour_of(number), marker=MARKERS[number % len(MARKERS)], s=14, linewidths=0,
                     label=name)  # fmt: skip
